"""Other contents in the place of those of a batch: other ids that are words, other pixels and samples."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_rksp.capture.contents import Content

#: Numbers in a configuration that are ids of the vocabulary; those of the second kind mark where something else is put in.
_ID = re.compile(r"(^|_)(token_(id|index|ids)|token)$|_id$|_index$")
_PLACE = re.compile("image|video|audio|vision|speech|frame|patch|img|point|box|seg|sound|placeholder")


def another(content: Content, sequences: Tensor, hidden: bool, config: object, to: float | None) -> Tensor:
    """The content with other values in the entries of ``sequences``: the real ones, or those that the mask hides."""
    value, device = content.value, content.value.device
    rows = sequences.to(device)[content.sequence.to(device)]
    where = rows.reshape(-1, *[1] * (value.ndim - 1)).expand(value.shape)
    real = spread(content.real, value)
    if real is None:
        where = where & (not hidden)
    else:
        where = where & (~real if hidden else real)
    if not content.discrete and value.ndim == 3:
        # Patches may have the numbers of their row and column in front: whole numbers that differ.
        flat = value.flatten(0, 1)
        places = (flat == flat.round()).all(0) & (flat != flat[:1]).any(0)
        if not bool(places.all()):
            where = where & ~places
    if content.discrete:
        return torch.where(where, _other_ids(value, real, config), value)
    if to is not None:
        return torch.where(where, to, value)
    size = value.float().std().nan_to_num(1.0).clamp_min(1e-3) if value.numel() > 1 else 1.0
    return torch.where(where, value + (torch.rand_like(value, dtype=torch.float32) + 0.5).to(value.dtype) * size, value)


def all_of(content: Content) -> Tensor:
    """All sequences of a content."""
    return torch.ones(content.sequences, dtype=torch.bool)


def but_the_first(content: Content) -> Content:
    """A text with a mask, as if the first place of each row were none to be changed."""
    assert content.real is not None
    real = content.real.clone()
    real[:, 0] = False
    return replace(content, real=real)


def spread(real: Tensor | None, value: Tensor) -> Tensor | None:
    """The mask over the whole content."""
    if real is None:
        return None
    shape, own = tuple(value.shape), tuple(real.shape)
    if shape[: len(own)] != own:
        axis = next((axis for axis in (1, 2) if shape[:axis] + shape[axis + 1 :] == own), None)
        if axis is None:
            return None
        return real.unsqueeze(axis).expand(shape)
    return real.reshape(*own, *[1] * (len(shape) - len(own))).expand(shape)


def _other_ids(ids: Tensor, real: Tensor | None, config: object) -> Tensor:
    """Another id in place of each that stands for itself; ids that mark the place of an image stay."""
    special, places = _special_ids(config)
    kept = ids if real is None else ids[real]
    kept = kept[kept >= 0]
    ordinary = torch.tensor(sorted(set(kept.unique().tolist()) - special - places), device=ids.device, dtype=ids.dtype)
    if len(ordinary) < 2:
        most = int(kept.max()) + 1 if kept.numel() else 2
        ordinary = torch.tensor(
            [number for number in range(max(most, 3)) if number not in special | places][:64] or [0, 1],
            device=ids.device,
            dtype=ids.dtype,
        )
    following = torch.searchsorted(ordinary, ids.contiguous(), right=True) % len(ordinary)
    other = ordinary[following]
    other = torch.where(other == ids, ordinary[(following + 1) % len(ordinary)], other)
    if places:
        marks = torch.isin(ids, torch.tensor(sorted(places), device=ids.device, dtype=ids.dtype))
        other = torch.where(marks, ids, other)
    return torch.where(ids < 0, ids, other)


def _special_ids(config: object) -> tuple[set[int], set[int]]:
    """Ids of a configuration that are no words, and those among them that mark a place."""
    special: set[int] = set()
    places: set[int] = set()
    if not hasattr(config, "to_dict"):
        return special, places

    def visit(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                visit(value)
            elif _ID.search(str(name)):
                numbers: Collection[Any] = value if isinstance(value, (list, tuple)) else [value]
                found = {n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0}
                special.update(found)
                if _PLACE.search(str(name)):
                    places.update(found)

    visit(config.to_dict())
    return special, places
