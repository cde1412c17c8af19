"""The attention logits of a forward pass, whichever kernel computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: What a kernel with its own mask adds or fills in where attention is forbidden; a real logit is far from it.
_FORBIDDEN = -1e4


class AttentionLogits(TorchFunctionMode):
    """While the context is open, keep the largest logit of every attention that runs.

    A logit is an entry of ``q k^T * scale``, before the softmax. The context sees ``scaled_dot_product_attention``, and every
    softmax over the last of at least four axes ``(batch, heads, queries, keys)``, which is how attention is written out. Logits
    that a mask forbids do not count. Flash attention that a package calls by itself is not seen.

    Args:
        tokens: shape ``(batch, tokens)``, which queries count; padding has queries too. ``None`` for all. Attention of other sizes
            counts as a whole.

    Attributes:
        on_device: the largest of all logits that are allowed, as a tensor without dimensions: to read it waits for the device.
            ``None`` if no attention was seen; minus infinity if every one was forbidden.
        calls: attentions that were seen.
    """

    def __init__(self, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.on_device: Tensor | None = None
        self.calls = 0

    @property
    def largest(self) -> float | None:
        """The largest logit; ``None`` if none is allowed, or no attention was seen."""
        value = None if self.on_device is None else float(self.on_device)
        return None if value == -math.inf else value

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            self._see(_logits(*args, **kwargs))
        elif function in _SOFTMAX and isinstance(args[0], Tensor) and args[0].ndim >= 4 and _axis(args, kwargs) == -1:
            self._see(args[0])
        return function(*args, **kwargs)

    def _see(self, logits: Tensor) -> None:
        self.calls += 1
        if not logits.numel():
            return
        largest, tokens = logits.detach().amax(-1).float(), self.tokens  # of each query; NaN if one is
        if tokens is not None and largest.ndim == 3 and tokens.shape == (largest.shape[0], largest.shape[-1]):
            largest = largest.masked_fill(tokens.to(largest.device)[:, None] == 0, -math.inf)
        value = largest.max()
        value = torch.where(value <= _FORBIDDEN, torch.full_like(value, -math.inf), value)
        before = self.on_device
        self.on_device = value if before is None else torch.maximum(before.to(value.device), value)


_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


def _axis(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return -1 if axis == args[0].ndim - 1 else axis


def _logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What the fused kernel puts into its softmax, as the documentation of ``scaled_dot_product_attention`` writes it."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    logits = query.detach() @ key.detach().transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits
