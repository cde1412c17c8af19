"""Attention of all arms: written out, with a soft cap on the logits if an arm has one, and the largest logit of each head."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "written_out"


def written_out(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention; states of shape ``(batch, heads, tokens, size)``, as many keys as queries."""
    logits = query @ key.mT * scaling
    tokens = logits.shape[-1]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=logits.device).triu(1)
    cap = getattr(module, "soft_cap", None)
    module.largest_logit = logits.detach().masked_fill(future, -torch.inf).amax((0, 2, 3))
    if cap:  # Gemma 2 (arXiv:2408.00118)
        logits = cap * torch.tanh(logits / cap)
    return (logits.masked_fill(future, -torch.inf).softmax(-1) @ value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, written_out)


class Watched(contextlib.AbstractContextManager["Watched"]):
    """Lets ``model`` use `written_out`."""

    def __init__(self, model: nn.Module, soft_cap: float | None) -> None:
        model.config._attn_implementation = _NAME
        self.layers = [module for module in model.modules() if hasattr(module, "q_proj")]
        for module in self.layers:
            module.soft_cap = soft_cap

    def __exit__(self, *error: object) -> None:
        pass

    def largest(self) -> list[Tensor]:
        """Of each layer, the largest logit of each head in the last forward pass."""
        return [module.largest_logit for module in self.layers]


@torch.no_grad()
def clip_queries_and_keys(model: nn.Module, largest: list[Tensor], limit: float) -> None:
    """QK-clip (Kimi K2, arXiv:2507.20534): a head whose largest logit is above the limit gets smaller queries and keys."""
    layers = [module for module in model.modules() if hasattr(module, "q_proj")]
    for module, logits in zip(layers, largest, strict=True):
        scale = (limit / logits).clamp(max=1.0).where(logits > limit, 1.0).sqrt()
        for projection in (module.q_proj, module.k_proj):
            heads = projection.weight.view(len(scale), -1, projection.weight.shape[1])
            heads.mul_(scale[:, None, None])
