"""The linear maps of a model: found in every form that holds them, and their products are those of what the module computes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from hf_rksp.capture import find_stacks
from hf_rksp.capture.linears import find_linears

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=4))


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, max_position_embeddings=16))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2))


def phi():
    return Phi3ForCausalLM(Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0))


def maps(model):
    return find_linears(find_stacks(model), model.config)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (gpt2, ["attn.c_attn[q]", "attn.c_attn[k]", "attn.c_attn[v]", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        (
            neox,
            [
                "attention.query_key_value[q]",
                "attention.query_key_value[k]",
                "attention.query_key_value[v]",
                "attention.dense",
                "mlp.dense_h_to_4h",
                "mlp.dense_4h_to_h",
            ],
        ),
        (
            llama,
            [
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
        ),
        (
            phi,
            [
                "self_attn.o_proj",
                "self_attn.qkv_proj[q]",
                "self_attn.qkv_proj[k]",
                "self_attn.qkv_proj[v]",
                "mlp.gate_up_proj",
                "mlp.down_proj",
            ],
        ),
    ],
)
def test_every_map_of_a_block_is_found_once(make, names):
    found = maps(make())
    assert [one.path for one in found if one.block.index == 1] == [f"{found[-1].block.path}.{name}" for name in names]
    assert {one.block.index for one in found} == {0, 1}


@pytest.mark.parametrize("make", [gpt2, neox, llama, phi])
def test_products_are_those_of_the_module(make):
    for one in maps(make()):
        x = torch.randn(one.width)
        bias = getattr(one.module, "bias", None)
        y = one.module(x) - (0 if bias is None else bias)
        y = y if one.rows is None else y[one.rows]
        with one.products() as (forth, back):
            torch.testing.assert_close(forth(x), y)
            u = torch.randn(len(y))
            torch.testing.assert_close(back(u) @ x, u @ y)


def test_parts_by_head_are_what_attention_takes():
    """GPT-NeoX views its output as (heads, 3 x head size) and cuts the last axis."""
    model = neox()
    q = next(one for one in maps(model) if one.path.endswith("[q]"))
    whole = torch.arange(48).view(4, 12)
    assert q.rows.tolist() == whole.chunk(3, dim=-1)[0].reshape(-1).tolist()


def test_keys_of_grouped_queries_are_fewer():
    rows = {one.path[-2]: one.height for one in maps(phi()) if one.rows is not None and one.block.index == 0}
    assert rows == {"q": 16, "k": 8, "v": 8}


def test_lora_counts_with_its_weight_and_is_not_found_by_itself():
    model = get_peft_model(gpt2(), LoraConfig(r=2, lora_alpha=6, target_modules=["c_attn", "c_fc"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    found = maps(model)
    assert len(found) == 12 and not any("lora" in one.path or "base_layer" in one.path for one in found)
    fc = next(one for one in found if one.path.endswith("mlp.c_fc"))
    x = torch.randn(16)
    with fc.products() as (forth, back):
        y = fc.module(x) - fc.module.base_layer.bias
        torch.testing.assert_close(forth(x), y)
        torch.testing.assert_close(back(y) @ x, y @ y)
    with model.disable_adapter(), fc.products() as (forth, _):
        torch.testing.assert_close(forth(x), fc.module.base_layer(x) - fc.module.base_layer.bias)


def test_experts_are_maps_of_the_tokens_that_they_get():
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1)
    )
    found = [one for one in maps(model) if one.expert is not None]
    assert [one.path.rpartition(".")[2] for one in found] == ["experts[0]", "experts[1]", "experts[2]"] * 2
    seen = []
    found[1].module.register_forward_pre_hook(lambda module, args: seen.append(args))
    model(torch.randint(0, 32, (2, 5)))
    counts = [int(one.own(seen[0]).sum()) for one in found[:3]]
    assert sum(counts) == 10 and seen[0][0].shape == (10, 16)
    x = torch.randn(16)
    with found[1].products() as (forth, _):
        torch.testing.assert_close(forth(x), found[1].module.gate_up_proj[1] @ x)


def test_half_precision_is_measured_in_float32():
    model = llama().bfloat16()
    with maps(model)[0].products() as (forth, _):
        assert forth(torch.randn(16)).dtype == torch.float32


def test_what_is_no_matrix_of_numbers_is_left_out():
    model = llama()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    assert not any(one.path.endswith("0.mlp.up_proj") for one in maps(model))


def test_a_fused_map_of_unknown_order_is_watched_whole():
    model = neox()
    model.config.model_type = "of_my_own"
    assert "gpt_neox.layers.0.attention.query_key_value" in [one.path for one in maps(model)]
