"""What one forward pass shows: closed forms, and the same numbers whichever kernel computes attention."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from hf_rksp.capture import find_stacks
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.profile.signals import measure_signals

IDS = torch.arange(24).reshape(2, 12)


def gpt2(attention):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=12, initializer_range=0.5)
    config._attn_implementation = attention
    return GPT2LMHeadModel(config).eval()


def test_growth_of_blocks_that_double():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Double(), Double(), Double()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = Chain()
    found = measure_signals(model, find_stacks(model, "layers"), lambda: model(torch.randn(2, 5, 4)))
    assert found.residual_growth == pytest.approx(8) and found.block_growth == pytest.approx(2)
    assert found.largest_attention_logit is found.log_z is None


def test_log_z_is_that_of_the_logits():
    model = gpt2("sdpa")
    found = measure_signals(model, find_stacks(model), lambda: model(IDS))
    assert found.log_z == pytest.approx(float(model(IDS).logits.exp().sum(-1).log().mean()), rel=1e-6)


def test_the_largest_logit_is_that_of_the_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    scores = (q @ k.transpose(-2, -1) / 2).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -math.inf)
    for call in (
        lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda: functional.scaled_dot_product_attention(q, k, v, torch.ones(6, 6, dtype=torch.bool).tril()),
        lambda: torch.softmax(scores, -1),
        lambda: scores.softmax(dim=-1),
    ):
        with AttentionLogits() as seen:
            call()
        assert seen.largest == pytest.approx(float(scores.max())) and seen.calls == 1
    with AttentionLogits() as seen:
        torch.softmax(torch.randn(3, 4), -1)  # of a router or an output, not of attention
    assert seen.largest is None


@pytest.mark.parametrize("at_once", [1, 50, 10**9])
def test_logits_of_a_block_of_queries_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr("hf_rksp.capture.attention._AT_ONCE", at_once)
    torch.manual_seed(1)
    q, k = torch.randn(2, 4, 7, 5), torch.randn(2, 2, 9, 5)
    whole = q @ k.repeat_interleave(2, 1).mT * 0.3
    shapes = [(7, 9), (1, 9), (7, 1), (2, 4, 7, 9), (2, 1, 1, 9)]
    masks = [torch.rand(shape) < 0.5 for shape in shapes]
    cases = [({}, whole), ({"is_causal": True}, whole.masked_fill(torch.ones(7, 9).triu(1).bool(), -math.inf))]
    cases += [({"attn_mask": mask}, whole.masked_fill(~mask, -math.inf)) for mask in masks]
    cases += [({"attn_mask": mask.float()}, whole + mask.float()) for mask in masks]
    for kwargs, logits in cases:
        with AttentionLogits() as seen:
            functional.scaled_dot_product_attention(q, k, k, scale=0.3, enable_gqa=True, **kwargs)
        assert seen.largest == pytest.approx(float(logits.max()), rel=1e-6)
    with AttentionLogits() as seen:
        functional.scaled_dot_product_attention(q[:, :, :0], k, k, enable_gqa=True)
    assert seen.largest is None and seen.calls == 1


@pytest.mark.parametrize("make", [gpt2, None], ids=["gpt2", "qwen3 with grouped queries"])
def test_kernels_agree_and_the_model_is_untouched(make):
    def qwen3(attention):
        torch.manual_seed(0)
        config = Qwen3Config(
            num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
            intermediate_size=16, vocab_size=32, initializer_range=0.5,
        )  # fmt: skip
        config._attn_implementation = attention
        return Qwen3ForCausalLM(config).eval()

    found = []
    for attention in ("eager", "sdpa"):
        model = (make or qwen3)(attention)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        found.append(measure_signals(model, find_stacks(model), lambda model=model: model(IDS)))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())
    assert found[0].largest_attention_logit == pytest.approx(found[1].largest_attention_logit, rel=1e-5)
    assert found[0].largest_attention_logit > 0.5
