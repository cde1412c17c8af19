"""States as they come: any scale, rank, precision and mask, duplicated and constant columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

#: Largest power of ten that a dtype holds with room for some states above their scale; the smallest without loss of digits.
_REACH = {torch.float64: (-30, 30), torch.float32: (-30, 30), torch.bfloat16: (-30, 30), torch.float16: (-3, 2)}


@dataclass(frozen=True)
class States:
    """``x``, ``y`` of shape ``(tokens, width)`` and ``mask``; ``scale`` is their size, ``rank`` that of x at most."""

    x: Tensor
    y: Tensor
    mask: Tensor | None
    scale: float
    rank: int
    eps: float


@st.composite
def states(draw, most_width=8, dtypes=tuple(_REACH), enough=False, masked=True, most=30):
    """States of a block. ``enough``: at least three tokens per dimension that count. ``most``: largest power of ten."""
    dtype = draw(st.sampled_from(dtypes))
    low, high = _REACH[dtype]
    high = min(high, most)
    width = draw(st.integers(1, most_width))
    tokens = draw(st.integers(3 * width + 3, 5 * width + 20) if enough else st.integers(1, 40))
    rank = draw(st.integers(1, width))
    scale = 10.0 ** draw(st.integers(low, high))
    dice = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(tokens, rank, generator=dice, dtype=torch.float64) @ torch.randn(
        rank, width, generator=dice, dtype=torch.float64
    )
    kind = draw(st.sampled_from(["plain", "duplicated", "constant", "shifted", "equal rows"]))
    if kind == "duplicated":
        x[:, -1] = x[:, 0]
    elif kind == "constant":
        x[:, 0] = 1.0
    elif kind == "shifted":
        x += 100
    elif kind == "equal rows" and not enough:
        x[:] = x[0].clone()
    y = x + 0.3 * torch.randn(tokens, width, generator=dice, dtype=torch.float64) * draw(st.sampled_from([0.0, 1.0]))
    mask = None
    if masked and draw(st.booleans()):
        mask = torch.rand(tokens, generator=dice) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        if enough:
            mask = mask | True
    return States((x * scale).to(dtype), (y * scale).to(dtype), mask, scale, rank, torch.finfo(dtype).eps)
