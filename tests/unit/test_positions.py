"""Padding on the left: which models count their positions from it."""

from functools import partial

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    BloomConfig,
    FSMTConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    RobertaConfig,
    T5Config,
)

from hf_rksp.capture import find_stacks, left_padding_shifts_positions
from hf_rksp.capture.calling import forward
from hf_rksp.inputs import with_decoder_inputs

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50,
        "pad_token_id": 0, "max_position_embeddings": 64}  # fmt: skip
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}  # fmt: skip
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64)
MODELS = [
    (GPT2, True),
    (BertConfig(**BERT), True),
    (BartConfig(**BART, vocab_size=50), True),
    (RobertaConfig(**BERT), False),  # counts by its token for padding
    (OPTConfig(**BERT, ffn_dim=64, word_embed_proj_dim=32), False),  # counts by the mask
    (LlamaConfig(**BERT), False),  # rotary
    (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50), False),  # from the mask
    (T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50), False),  # relative
    (MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=50), False),
    (
        FSMTConfig(**BART, src_vocab_size=50, tgt_vocab_size=50, langs=["en", "de"], pad_token_id=0),
        False,
    ),  # by its token
]


def built(config):
    torch.manual_seed(0)
    return AutoModel.from_config(config).train()


def padded(side="left", lengths=(8, 5, 3)):
    ids = torch.randint(5, 50, (len(lengths), 8), generator=torch.Generator().manual_seed(0))
    mask = torch.stack([(torch.arange(8) < n).long() for n in lengths])
    mask = mask.flip(1) if side == "left" else mask
    return {"input_ids": ids * mask, "attention_mask": mask}


def shifts(model, batch):
    batch = with_decoder_inputs(model, batch)
    stacks = find_stacks(model, ["encoder.layers", "decoder.layers"] if model.config.model_type == "fsmt" else None)
    return left_padding_shifts_positions(model, batch, stacks, partial(forward, model))


@pytest.mark.parametrize(("config", "shifted"), MODELS, ids=[config.model_type for config, _ in MODELS])
def test_which_models_shift(config, shifted):
    model = built(config)
    modules = list(model.modules())
    state = torch.get_rng_state()
    assert shifts(model, padded()) is shifted
    assert shifts(model, padded("right")) is False
    assert all(module.training and not module._forward_pre_hooks for module in modules)
    assert torch.equal(torch.get_rng_state(), state)


def test_positions_that_are_given_are_the_users():
    batch = padded()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert not shifts(built(GPT2), batch | {"position_ids": positions})


def test_no_padding_costs_no_pass():
    model, calls = built(GPT2), []
    for batch in (padded(lengths=(8, 8)), padded("right"), {"input_ids": torch.ones(2, 8).long()}):
        assert not left_padding_shifts_positions(model, batch, find_stacks(model), calls.append)
    assert not calls


def test_no_more_than_the_way_to_the_first_block():
    model, ran = built(GPT2), []
    for block in model.h:
        block.register_forward_hook(lambda *_: ran.append(1))
    assert shifts(model, padded()) and not ran


def test_embeddings_instead_of_ids_and_low_precision():
    model = built(GPT2).to(torch.bfloat16)
    batch = padded()
    embeds = model.wte(batch.pop("input_ids")).detach()
    assert shifts(model, batch | {"inputs_embeds": embeds})
    rotary = built(LlamaConfig(**BERT)).to(torch.bfloat16)
    assert not shifts(rotary, batch | {"inputs_embeds": embeds})
