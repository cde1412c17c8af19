"""The norm of the blocks is told by what their modules do."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
)

from hf_rksp.capture import find_stacks
from hf_rksp.capture.norms import find_norms, kind_of, norm_of, norms_of_states

_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48,
    "vocab_size": 64, "pad_token_id": None,
}  # fmt: skip


def model_of(name, **more):
    torch.manual_seed(0)
    if name == "gpt2":
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=64)
        )
    if name == "gemma3_text":
        more |= {"head_dim": 8}
    if name == "qwen3":
        more |= {"head_dim": 8}
    make = AutoModel if name in ("bert", "vit") else AutoModelForCausalLM
    return make.from_config(AutoConfig.for_model(name, **_SMALL, **more))


def norm_in(model):
    return norm_of(norms_of_states(find_norms(find_stacks(model))))


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("gpt2", "layer"), ("gpt_neox", "layer"), ("bert", "layer"), ("vit", "layer"), ("rwkv", "layer"), ("olmo", "layer"),
        ("llama", "rms"), ("qwen3", "rms"), ("olmo2", "rms"), ("gemma3_text", "rms"), ("mixtral", "rms"), ("mamba", "rms"),
    ],
)  # fmt: skip
def test_models_of_transformers(name, norm):
    more = {"attention_hidden_size": 32} if name == "rwkv" else {}
    assert norm_in(model_of(name, **more)) == norm


def test_a_norm_of_queries_and_keys_is_not_one_of_the_stream():
    model = model_of("gpt2")
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        block.attn.q_norm = nn.RMSNorm(8)
    assert norm_in(model) == "none"
    for block in model.transformer.h:
        block.ln_1 = nn.LayerNorm(32)
    assert norm_in(model) == "layer"


def test_no_norm():
    model = model_of("gpt2")
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    assert norm_in(model) == "none"


class OfAnotherName(nn.Module):
    """T5's: RMSNorm that is called a layer norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_name_does_not_count_and_half_precision_does_not_matter(dtype):
    assert kind_of(OfAnotherName().to(dtype), 16) == "rms"
    assert kind_of(nn.LayerNorm(16).to(dtype), 16) == "layer"


def test_a_module_is_left_in_its_mode():
    module = nn.LayerNorm(16).train()
    kind_of(module, 16)
    assert module.training


@pytest.mark.parametrize(
    "module", [nn.Dropout(), nn.SiLU(), nn.Tanh(), nn.BatchNorm1d(16), nn.Softmax(-1), nn.PReLU(16)]
)
def test_what_is_no_norm(module):
    assert kind_of(module, 16) is None


def test_hooks_of_a_model_are_not_called():
    model, calls = model_of("llama"), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    assert len(find_norms(find_stacks(model))) == 4 and not calls
