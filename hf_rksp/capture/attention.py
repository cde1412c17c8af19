"""The attention logits of a forward pass, whichever kernel computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hf_rksp.errors import first_line

#: What a kernel with its own mask adds or fills in where attention is forbidden; a real logit is far from it.
_FORBIDDEN = -1e4
#: Logits in memory at a time: 128 MiB in float32. All of a long sequence would not fit.
_AT_ONCE = 2**25


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
        unread: why one that was seen could not be read; the model goes on.
    """

    def __init__(self, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.on_device: Tensor | None = None
        self.calls = 0
        self.unread: str | None = None  # an exception would hold the tensors of its frames

    @property
    def largest(self) -> float | None:
        """The largest logit; ``None`` if none is allowed, no attention was seen, or one could not be read."""
        value = None if self.on_device is None or self.unread is not None else float(self.on_device)
        return None if value == -math.inf else value

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            if function is functional.scaled_dot_product_attention:
                self.calls += 1
                self._see(_largest(*args, **kwargs))
            elif (
                function in _SOFTMAX and isinstance(args[0], Tensor) and args[0].ndim >= 4 and _axis(args, kwargs) == -1
            ):
                self.calls += 1
                self._see(args[0].detach().amax(-1) if args[0].numel() else args[0])
        except Exception as error:
            self.unread = f"{type(error).__name__}: {first_line(error)}"
        return function(*args, **kwargs)

    def _see(self, of_queries: Tensor) -> None:
        if not of_queries.numel():
            return
        largest, tokens = of_queries.float(), self.tokens  # NaN if a logit of the query is
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


def _largest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The largest logit of each query: what the fused kernel puts into its softmax, as the documentation of
    ``scaled_dot_product_attention`` writes it. The logits of a block of queries are in memory at a time.
    """
    if not query.numel() or not key.numel():
        return query.new_empty(0)
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    query, key = query.detach(), key.detach()
    attn_mask = None if attn_mask is None else attn_mask.detach()  # T5 learns a bias, which is handed over as a mask
    scale = query.size(-1) ** -0.5 if scale is None else scale
    per_query = max(key.shape[:-1].numel(), query.shape[:-2].numel() * key.shape[-2], 1)
    rows = max(_AT_ONCE // per_query, 1)
    found = []
    for start in range(0, query.shape[-2], rows):
        block = query[..., start : start + rows, :]
        end = start + block.shape[-2]
        # No query of the block sees a later key.
        logits = block @ key[..., : end if is_causal else None, :].mT * scale
        if is_causal:
            later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(start + 1)
            logits.masked_fill_(later, -math.inf)
        if attn_mask is not None:
            logits = _masked(logits, attn_mask, start, end)
        found.append(logits.amax(-1))
    return torch.cat(found, -1)


def _masked(logits: Tensor, mask: Tensor, start: int, end: int) -> Tensor:
    """Logits of the queries from ``start`` to ``end``, and of the first keys, with their part of the mask."""
    here = mask[..., start:end, :] if mask.shape[-2] > 1 else mask
    here = here[..., : logits.shape[-1]] if here.shape[-1] > 1 else here
    return logits.masked_fill(~here, -math.inf) if here.dtype == torch.bool else logits + here
