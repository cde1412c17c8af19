"""The tasks and their networks: small enough for 24 seeds on two cores, large enough to learn something."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, BATCH = 4, 4, 32


@dataclass(frozen=True)
class Task:
    """A network, where its batches come from, and the loss of knowing nothing."""

    network: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    chance: float


def gpt2(width: int, vocabulary: int, length: int, norm: bool) -> GPT2LMHeadModel:
    """GPT-2 as transformers initialises it, with its Pre-LN or without any normalisation; no dropout."""
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=LAYERS, n_embd=width, n_head=HEADS, vocab_size=vocabulary, n_positions=length, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        )
    )  # fmt: skip
    if not norm:
        for block in model.transformer.h:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        model.transformer.ln_f = nn.Identity()
    return model


def llama(width: int, vocabulary: int, length: int) -> LlamaForCausalLM:
    """LLaMA (RMSNorm, rotary positions, SwiGLU) of the same size."""
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=LAYERS, hidden_size=width, num_attention_heads=HEADS, num_key_value_heads=HEADS,
            intermediate_size=8 * width // 3 // 8 * 8, vocab_size=vocabulary, max_position_embeddings=length, use_cache=False,
        )
    )  # fmt: skip


def recall(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``[k1 v1 k2 v2 0 0 0 query answer]``; the loss is on the answer alone, which is told at the position of the query.

    Keys are 1 to 15, values 16 to 31: chance is ln 16 = 2.77.
    """
    keys = torch.stack([torch.randperm(15, generator=generator)[:2] + 1 for _ in range(BATCH)])
    values = torch.randint(16, 32, (BATCH, 2), generator=generator)
    ids = torch.zeros(BATCH, 9, dtype=torch.long)
    ids[:, 0:4:2], ids[:, 1:4:2] = keys, values
    rows, query = torch.arange(BATCH), torch.randint(0, 2, (BATCH,), generator=generator)
    ids[:, -2], ids[:, -1] = keys[rows, query], values[rows, query]
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return ids, labels


def wikitext_file() -> Path:
    """The test split of WikiText-103 under HF_RKSP_DATA.

    Raises:
        ValueError: the variable is not set, or the file is not there.
    """
    file = Path(os.environ.get("HF_RKSP_DATA", "")) / "wikitext/wikitext-103-v1/test-00000-of-00001.parquet"
    if "HF_RKSP_DATA" not in os.environ or not file.is_file():
        raise ValueError(
            f"HF_RKSP_DATA={os.environ.get('HF_RKSP_DATA')!r}: the text tasks read WikiText-103; set it to the folder that has "
            "wikitext/wikitext-103-v1/test-00000-of-00001.parquet"
        )
    return file


@functools.cache
def wikitext() -> Tensor:
    """The bytes of the test split of WikiText-103; a run sees a fifth of it, so its training loss is on fresh text."""
    rows = load_dataset("parquet", data_files=str(wikitext_file()), split="train")["text"]
    return torch.frombuffer(bytearray("".join(rows).encode()), dtype=torch.uint8)


def text(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight passages of 32 bytes of WikiText-103, next byte to be told."""
    data = wikitext()
    starts = torch.randint(0, len(data) - 32, (8, 1), generator=generator)
    ids = data[starts + torch.arange(32)].long()
    return ids, ids


TASKS = {
    "recall": Task(lambda: gpt2(128, 32, 9, norm=False), recall, 2.77),
    "text-preln": Task(lambda: gpt2(64, 256, 32, norm=True), text, 5.55),
    "text-rmsnorm": Task(lambda: llama(64, 256, 32), text, 5.55),
}
