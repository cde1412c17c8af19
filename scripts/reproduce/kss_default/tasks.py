"""The tasks and their networks: small enough for 24 seeds on two cores, large enough to learn something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scripts.reproduce import data

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
    """A batch of associative recall."""
    return data.recall(generator, BATCH)


def text(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight passages of 32 bytes of WikiText-103, next byte to be told.

    A run sees a fifth of the test split, so its training loss is on fresh text.
    """
    ids = data.passages(data.wikitext("test"), generator, 8, 32)
    return ids, ids


TASKS = {
    "recall": Task(lambda: gpt2(128, 32, 9, norm=False), recall, 2.77),
    "text-preln": Task(lambda: gpt2(64, 256, 32, norm=True), text, 5.55),
    "text-rmsnorm": Task(lambda: llama(64, 256, 32), text, 5.55),
}
