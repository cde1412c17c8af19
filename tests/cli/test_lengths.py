"""Sequences that a model has no positions for are refused before the work, with the number that it has."""

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    CTRLConfig,
    GPT2Config,
    GPTJConfig,
    LEDConfig,
    LlamaConfig,
    LongformerConfig,
    MPNetConfig,
    OPTConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from hf_rksp.errors import InputError
from hf_rksp.inputs import with_decoder_inputs
from hf_rksp.inputs.trial import check_length

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}  # fmt: skip
POSITIONS = {"max_position_embeddings": 34}
MODELS = [
    (GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=34), 34),
    (BertConfig(**BERT, **POSITIONS), 34),
    (RobertaConfig(**BERT, **POSITIONS, pad_token_id=1), 32),
    (XLMRobertaConfig(**BERT, **POSITIONS, pad_token_id=1), 32),
    (MPNetConfig(**BERT, **POSITIONS, pad_token_id=1), 32),
    (LongformerConfig(**BERT, **POSITIONS, pad_token_id=1, attention_window=4), 32),
    (OPTConfig(**BERT, **POSITIONS, ffn_dim=64, word_embed_proj_dim=32), 34),
    (BartConfig(**BART, **POSITIONS), 34),
    (LEDConfig(**BART, max_encoder_position_embeddings=64, max_decoder_position_embeddings=34, attention_window=4), 34),
    (CTRLConfig(n_embd=32, n_layer=2, n_head=4, dff=64, vocab_size=50, n_positions=34), 34),
    (GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=50, n_positions=34), 34),
]
WITHOUT = [
    LlamaConfig(**BERT, **POSITIONS),
    T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50),
]


def check(config, length):
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    ids = torch.randint(5, 50, (1, length), generator=torch.Generator().manual_seed(0))
    ids[0, 3] = 1  # the id of RoBERTa's padding: this text has one position less than others

    def batch(n):
        return with_decoder_inputs(model, {"input_ids": ids[:, :n], "attention_mask": torch.ones(1, n).long()})

    check_length(model, batch, length, "tiny")
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("config", "takes"), MODELS, ids=[config.model_type for config, _ in MODELS])
def test_offsets_and_tables_are_measured(config, takes):
    check(config, takes)
    for length in (takes + 1, takes + 2, 60):
        with pytest.raises(
            InputError, match=rf"seq_len={length}: the model .* {takes} .*pass --seq-len {takes} or less"
        ):
            check(config, length)


@pytest.mark.parametrize("config", WITHOUT, ids=[config.model_type for config in WITHOUT])
def test_relative_positions_have_no_end(config):
    check(config, 200)


def test_a_model_that_takes_no_text_alone():
    class Deaf(torch.nn.Module):
        config = None

        def forward(self, boxes):
            return boxes

    with pytest.raises(InputError, match=r"cannot be run with input_ids .*Deaf.* batches of its own"):
        check_length(Deaf(), lambda n: {"input_ids": torch.ones(1, n).long()}, 8, "deaf")


def test_the_command_line_says_so(rksp):
    bert = "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,intermediate_size=64,vocab_size=300"
    args = ("audit", "--init", "bert-base", "--config-overrides", f"{bert},max_position_embeddings=40", "--groups", 0)
    code, out, err = rksp(*args, "--seq-len", 41, "--tokens", 500, "--quiet")
    assert code == 2 and out == "" and "seq_len=41: the model takes 40 tokens" in err and "--seq-len 40" in err
    code, _, err = rksp(*args, "--seq-len", 40, "--tokens", 500, "--quiet", "--json", "-")
    assert code == 0, err
