"""The rule that explains what a probe saw, so that it holds for batches of other sizes too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.contents import Content
from hf_rksp.capture.layout import Layout
from hf_rksp.capture.probe import Seen
from hf_rksp.capture.rules import Entries, Everything, Frames, Grid, Parts, Reducer, Rule, Shape


def explains(
    stack: Stack, contents: Sequence[Content], seen: Seen, layout: Layout, reducer: Reducer | None
) -> Rule | None:
    """A rule that gives just this layout and will hold for other batches."""
    moving = [content for content in contents if bool(seen.moved[content.name].any())]
    candidates: list[Rule] = []
    for content in moving:
        candidates += [Grid(content.name, order, stack.prepended) for order in ("rows first", "tokens first")]
    if reducer is not None:
        candidates += [Frames(content.name, reducer) for content in moving]
    parts = _parts(moving, seen, layout)
    if parts is not None:
        candidates.append(parts)
    for content in moving:
        candidates += [Everything(content.name), Entries(content.name)]
    if not moving:
        candidates += [Everything(content.name, learnt=True) for content in contents]
    for rule in candidates:
        found = rule.layout(contents, seen.lead)
        if found is not None and _same(found, layout, seen.lead):
            return rule
    return None


def _parts(moving: Sequence[Content], seen: Seen, layout: Layout) -> Parts | None:
    """The contents in the columns of a row, if every one of them stands in one piece."""
    if len(seen.lead) != 2 or layout.axes is not None or layout.owner is not None:
        return None
    width = seen.lead[1]
    placed: list[tuple[str, int, int]] = []
    for content in moving:
        if content.value.shape[0] != seen.lead[0] or content.value.ndim < 2:
            continue
        shape = content.value.shape[:2]
        if content.real is not None and content.real.shape != shape:
            continue
        if not content.discrete and content.real is None:
            continue  # the places of an image: every one counts, how many there are is the model's business
        moved = seen.moved[content.name]
        real = torch.ones(shape, dtype=torch.bool, device=moved.device) if content.real is None else content.real
        real = real.to(moved.device)
        begins = [
            start for start in range(width - shape[1] + 1) if bool((moved[:, start : start + shape[1]] == real).all())
        ]
        if len(begins) != 1:
            return None
        placed.append((content.name, begins[0], shape[1]))
    placed.sort(key=lambda part: part[1])
    if not placed or any(a[1] + a[2] != b[1] for a, b in itertools.pairwise(placed)):
        return None
    begin, end = placed[0][1], placed[-1][1] + placed[-1][2]
    mask = torch.ones(seen.lead, dtype=torch.bool) if layout.mask is None else layout.mask.bool().cpu()
    if not (mask[:, :begin] == mask[:1, :begin]).all() or not (mask[:, end:] == mask[:1, end:]).all():
        return None
    before, after = tuple(mask[0, :begin].tolist()), tuple(mask[0, end:].tolist())
    return Parts(tuple((name, start) for name, start, _ in placed), before, after, bool(after) and not any(after))


def _same(one: Layout, other: Layout, lead: Shape) -> bool:
    """Whether two layouts count the same states and give them to the same sequences."""
    if (one.streams, one.sequences) != (other.streams, other.sequences):
        return False

    def spread(layout: Layout) -> Tensor:
        indices = torch.arange(math.prod(lead)).reshape(*lead, 1)
        rows = layout.read(indices)
        owner = torch.arange(len(rows)) if layout.owner is None else layout.owner.cpu()
        owners = owner[:, None].expand(rows.shape[:2]).clone()
        if layout.mask is not None:
            owners[layout.mask.cpu() == 0] = -1
        flat = torch.empty(math.prod(lead), dtype=torch.long)
        flat[rows.reshape(-1, rows.shape[-1])[:, 0]] = owners.reshape(-1)
        return flat

    if one.streams:
        return one.axes == other.axes
    return bool((spread(one) == spread(other)).all())
