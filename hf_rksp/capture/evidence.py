"""What a probe saw of one stack, as a layout: which states are tokens, which are padding, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.contents import Content, sequences_of
from hf_rksp.capture.layout import Layout
from hf_rksp.capture.probe import Seen
from hf_rksp.capture.refusals import REMEDY
from hf_rksp.capture.rules import Frames, Grid, Reducer
from hf_rksp.errors import CaptureError


def layout_of(
    stack: Stack,
    contents: Sequence[Content],
    seen: Seen,
    padding: Tensor | None,
    reducer: Reducer | None,
    turned: bool,
    notes: dict[str, str],
) -> tuple[Layout, Tensor | None]:
    """What a probe says of one stack, for the very batch that was probed.

    Args:
        stack, contents: that were probed.
        seen: what the probe saw.
        padding: the padding in front of a stack that feeds this one, shape of the states: what lies between may add to it.
        reducer: the model's own way from samples to frames.
        turned: its masks mark the padding.
        notes: takes a sentence on states that are the model's own, by the path of the stack.

    Returns:
        The layout, and the padding that the model adds, if any.

    Raises:
        CaptureError: the states cannot be matched with the contents.
    """
    moved = seen.by_any
    if not moved.any():
        return _learnt(stack, contents, seen), None
    space = next((space for space, owner in seen.owner.items() if (owner >= 0).any()), None)
    if space is None:
        raise CaptureError(
            f"the states in front of {stack.path} move, but with no sequence of the batch in particular, so they belong to "
            f"none of them: {REMEDY}"
        )
    owner = seen.owner[space]
    own_mixed = seen.mixed if seen.mixed is not None else torch.zeros_like(moved)
    frames = _by_reducer(contents, seen, reducer)
    if frames is not None:
        return frames, None
    grid = _streams(contents, seen)
    if grid is not None:
        return grid, None
    if bool(own_mixed.any()):
        merged = _regrouped(owner, seen, contents, space)
        if merged is None:
            raise CaptureError(
                f"the states in front of {stack.path} depend on several sequences of the batch at once, so they belong to none "
                f"of them: pass batches of one sequence, or {REMEDY}"
            )
        owner = merged
    sequences = _count(contents, space)
    axis = _axis(owner)
    hidden = torch.zeros_like(moved) if seen.hidden is None else seen.hidden
    text = _written(contents, seen, moved, hidden)
    if text is not None:
        return Layout(sequences, text), None
    counted = moved & _attended(contents, seen, moved, hidden, turned) & ~(hidden & seen.causal)
    if seen.attended is not None and not turned:  # an image may be added to the padding of a text too
        counted &= ~hidden | seen.attended.to(moved.device)
    images = [c for c in contents if not c.discrete and bool(seen.moved[c.name].any())]
    own = ~moved & ~hidden
    if axis is not None:
        whole = own.all(axis, keepdim=True).expand(own.shape)
        learnt = whole & own
        padded = _zeros_behind(moved, learnt, seen, axis)
        if seen.attended is not None and not turned:
            padded |= learnt & ~seen.attended.to(moved.device)
        if padding is not None:
            padded |= padding & (learnt | seen.zero)
        learnt &= ~padded
        if images and not stack.prepended:
            counted = (counted | learnt) & ~padded  # class tokens stand among the places of an image
            learnt = torch.zeros_like(learnt)
        for states, what in (
            (learnt, "are the model's own, not tokens of the batch"),
            (padded, "are padding that the model adds"),
        ):
            if bool(states.any()):
                number = int(states.movedim(axis, 0)[0].sum())
                notes[stack.path] = f"{number} states per sequence of {stack.path} {what}: they are left out"
        order = (axis, *[a for a in range(owner.ndim) if a != axis])
        by_row = owner.movedim(axis, 0).flatten(1).amax(1).clamp_min(0)
        mask = counted.permute(order).flatten(1)
        plain = bool((by_row == torch.arange(len(by_row), device=by_row.device)).all()) and len(by_row) == sequences
        axes = None if order == tuple(range(owner.ndim)) else order
        layout = Layout(sequences, None if bool(mask.all()) else mask, None if plain else by_row, axes)
        return layout, padded if bool(padded.any()) else None
    mask = counted & (owner >= 0)
    alone = None if bool(mask.all()) else mask.reshape(-1, 1)
    return Layout(sequences, alone, owner.clamp_min(0).reshape(-1), None, owner.ndim), None


def _learnt(stack: Stack, contents: Sequence[Content], seen: Seen) -> Layout:
    """Learnt queries alone, which look at the batch from the first block on: all of them count."""
    sequences = _count(contents, "")
    if len(seen.lead) < 2 or seen.lead[0] != sequences:
        raise CaptureError(
            f"no state in front of {stack.path} depends on {', '.join(seen.moved)}: pass inputs that reach it, or name "
            "other lists with blocks=[...]"
        )
    return Layout(sequences)


def _by_reducer(contents: Sequence[Content], seen: Seen, reducer: Reducer | None) -> Layout | None:
    for content in contents:
        if reducer and not content.discrete and content.real is not None and bool(seen.moved[content.name].any()):
            found = Frames(content.name, reducer).layout(contents, seen.lead)
            if found is not None:
                return found
    return None


def _count(contents: Sequence[Content], space: str) -> int:
    if space:
        return next(content.sequences for content in contents if content.name == space)
    return sequences_of(contents)


def _axis(owner: Tensor) -> int | None:
    """The axis along which the sequence changes and across which it does not; ``None`` if there is none."""
    if owner.ndim < 2:
        return None
    for axis in range(owner.ndim):
        rows = owner.movedim(axis, 0).flatten(1)
        most = rows.amax(1, keepdim=True)
        if bool(((rows == most) | (rows < 0)).all()):
            return axis
    return None


def _attended(contents: Sequence[Content], seen: Seen, moved: Tensor, hidden: Tensor, turned: bool) -> Tensor:
    """Which states the model itself takes for real, where convolutions carry real pixels and samples into the padding.

    ``turned``: its masks mark the padding.
    """
    blurred = any(content.real is not None and not content.discrete for content in contents)
    if seen.attended is None or not blurred:
        return torch.ones_like(moved)
    attended = seen.attended.to(moved.device)
    if turned:
        attended = ~attended
    return torch.ones_like(moved) if bool((hidden & ~moved & attended).any()) else attended


def _written(contents: Sequence[Content], seen: Seen, moved: Tensor, hidden: Tensor) -> Tensor | None:
    """The mask of a text that has a state for each of its ids, images in their places.

    A place whose state another image leaves as it is (one of few codes that stand for a patch) is a token all the same.
    """
    for content in contents:
        real = content.real
        if not content.discrete or real is None or seen.lead != tuple(real.shape):
            continue
        real = real.to(moved.device)
        if bool(seen.moved[content.name].any()) and not bool((moved & ~real).any() or (hidden & real).any()):
            return real
    return None


def _zeros_behind(moved: Tensor, learnt: Tensor, seen: Seen, axis: int) -> Tensor:
    """The states that are zero and stand between those of the batch and the model's own, or the end: padding up to a size.

    Class tokens and registers that have not been trained are zero as well, but stand in front of those of the batch.
    """
    order = (axis, *[a for a in range(moved.ndim) if a != axis])
    flat, empty = moved.permute(order).flatten(1), (learnt & seen.zero).permute(order).flatten(1)
    found = empty & _next_to(flat, empty) & ~_next_to(flat.flip(1), empty.flip(1)).flip(1)
    shape = [moved.shape[a] for a in order]
    return found.reshape(shape).permute([order.index(a) for a in range(moved.ndim)])


def _next_to(start: Tensor, through: Tensor) -> Tensor:
    """Of the places in ``through``, rows of places: those that are reached from a place in ``start`` going to the right."""
    reached = torch.zeros_like(start)
    for place in range(1, start.shape[1]):
        reached[:, place] = through[:, place] & (start[:, place - 1] | reached[:, place - 1])
    return reached


def _streams(contents: Sequence[Content], seen: Seen) -> Layout | None:
    """States of shape ``(streams, batch, tokens)``, or the streams behind: several states of each token of one content."""
    for content in contents:
        moved = seen.moved[content.name]
        if not content.discrete or not bool(moved.any()) or len(seen.lead) < 3:
            continue
        for order in (None, "rows first"):
            found = Grid(content.name, order).layout(contents, seen.lead)
            if found is not None and found.streams:
                return found
    return None


def _regrouped(owner: Tensor, seen: Seen, contents: Sequence[Content], space: str) -> Tensor | None:
    """Where several entries along the first axis of a content make one state (codebooks), the first axis of the states."""
    count = _count(contents, space)
    if len(seen.lead) >= 2 and seen.lead[0] > 0 and count % seen.lead[0] == 0 and count > seen.lead[0]:
        rows = torch.arange(seen.lead[0], device=owner.device) * (count // seen.lead[0])
        return torch.where(owner >= 0, rows.reshape(-1, *[1] * (owner.ndim - 1)), -1)
    return None
