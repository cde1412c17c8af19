"""Does padding on the left move a model's positions?

A model that counts its positions over the whole row, padding included, sees a text in another place than without the
padding: right-padded batches do not show it, left-padded ones without ``position_ids`` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.calling import eager, untouched
from hf_rksp.capture.fronts import Run, first_states

#: Numbers that are added in another order differ by a few units of rounding; another position is another vector.
_UNITS = 64


def left_padding_shifts_positions(
    model: nn.Module, batch: Mapping[str, Any], stacks: Sequence[Stack], run: Run
) -> bool:
    """Whether the padding on the left of ``batch`` makes the model count positions from the padding.

    The states that enter the first block are compared with those of the same texts padded on the right: two passes up to
    there, and none for a batch that is not padded on the left or has ``position_ids``. Models with relative or rotary positions,
    and those that count from the mask, have the same states in both.

    Args:
        model: comes back as it went in.
        batch: what it is called with.
        stacks: from `find_stacks`.
        run: calls the model with a batch.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or batch.get("position_ids") is not None:
        return False
    real = mask.bool()
    padded = ~real[:, 0] & real.any(1)
    if not bool(padded.any()):
        return False
    moved = {name: _to_the_left(value, real) for name, value in batch.items()}
    with untouched(model), eager():
        here = _states(stacks, batch, run, real.shape)
        if here is None:
            return False
        try:
            there = _states(stacks, moved, run, real.shape)
        except (
            Exception
        ):  # a model with a layout of its own does not take it; then nothing is known, and nothing is said
            return False
    if there is None or here.shape != there.shape:
        return False
    # Of the rows that are padded on the left alone: a convolution before the blocks reaches beyond the ends of the others.
    one, other = here[real.to(here.device)], there[moved["attention_mask"].bool().to(there.device)]
    rows = padded[:, None].expand_as(real)[real].to(one.device)
    one, other = one[rows].float(), other[rows].float()
    scale = float(one.abs().max())
    return float((one - other).abs().max()) > _UNITS * torch.finfo(here.dtype).eps * scale


def _states(stacks: Sequence[Stack], batch: Mapping[str, Any], run: Run, shape: torch.Size) -> Tensor | None:
    """What enters the first block that sees one state a place, shape ``(texts, places, d)``; ``None`` if none does."""
    for x in first_states(run, batch, stacks).values():
        if x.ndim == 3 and x.shape[:2] == shape:
            return x
        if x.ndim == 3 and x.shape[:2] == (shape[1], shape[0]):  # tokens first
            return x.transpose(0, 1)
    return None


def _to_the_left(value: Any, real: Tensor) -> Any:
    """``value`` with the real places of each row first and its padding after them, where it has one entry a place."""
    if not isinstance(value, Tensor) or value.shape[:2] != real.shape:
        return value
    order = torch.argsort((~real).long(), dim=1, stable=True).to(value.device)
    return value[torch.arange(len(real), device=value.device)[:, None], order]
