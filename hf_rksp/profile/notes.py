"""Sentences on what a profile leaves out, and on batches that show a model in an unusual light."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hf_rksp.capture import Layouts, Stack, left_padding_shifts_positions
from hf_rksp.capture.calling import forward


def left_out(stacks: Sequence[Stack], layouts: Layouts) -> list[str]:
    """What a profile leaves out, in sentences."""
    lost = [path for stack in stacks for path in stack.left_out]
    notes = []
    if lost:
        total = len(lost) + sum(len(stack.blocks) for stack in stacks)
        notes.append(
            f"{len(lost)} of {total} blocks change the shape of the state, as the first block of a stage does, and have no "
            f"spectrum. They are left out: {', '.join(lost)}"
        )
    notes += [
        f"The modules of {path} take and return states of one shape, but do not hand these to each other: they are not profiled. "
        f"If they carry a residual stream, pass blocks=[..., {path!r}]"
        for stack in stacks
        for path in stack.unchained
    ]
    notes += [f"The layers of {path} are left out: {error}" for path, error in layouts.unread.items()]
    return notes + list(layouts.notes.values())


def not_run(path: str) -> str:
    """The sentence on a list that may hold residual blocks, of a model that is never run whole."""
    return (
        f"The modules of {path} may be residual blocks, which only running the whole model tells: with weights= (--stream on the "
        f"command line) they are not profiled. If they carry a residual stream, pass blocks=[..., {path!r}]"
    )


def warn_of_left_padding(model: nn.Module, batches: Sequence[Mapping[str, Any]], stacks: Sequence[Stack]) -> None:
    """Say so if the model counts the positions of left-padded texts from the padding; the first such batch decides."""
    for batch in batches:
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask[:, 0] == 0).any()):
            if left_padding_shifts_positions(model, batch, stacks, functools.partial(forward, model)):
                warnings.warn(
                    "batches are padded on the left without position_ids, and this model counts positions from the padding: its "
                    "states are those of texts in other places. Pass position_ids, or pad on the right",
                    stacklevel=3,
                )
            return
