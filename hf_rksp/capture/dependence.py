"""What the states of one stack depend on beside the contents of a batch: other stacks, and where words stand on a page."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.contents import Content
from hf_rksp.capture.fronts import Run, first_states
from hf_rksp.capture.probe import Seen
from hf_rksp.errors import CaptureError


def feeds(run: Run, batch: Mapping[str, Any], stacks: Sequence[Stack], before: Stack, stack: Stack, stop: bool) -> bool:
    """Whether what leaves one stack reaches another: then padding in front of the one is padding in front of the other."""
    plain, other = (
        first_states(run, batch, stacks, stop, shifted=shifted).get(stack.path) for shifted in ("", before.path)
    )
    return plain is not None and other is not None and plain.shape == other.shape and not torch.equal(plain, other)


def never_set(
    run: Run,
    batch: Mapping[str, Any],
    model: nn.Module,
    stacks: Sequence[Stack],
    stop: bool,
    answers: Mapping[str, Seen],
) -> dict[str, Tensor]:
    """The states in front of each stack that are zero whatever the weights are: not learnt tokens before their training.

    Weights of two dimensions or more that are zero all through are set to something else for one pass, and put back.
    """
    zero = {path: seen.zero for path, seen in answers.items() if bool(seen.zero.any())}
    if not zero:
        return {}
    blank = [
        weight.data
        for weight in model.parameters()
        if weight.ndim >= 2 and weight.is_floating_point() and not weight.is_meta and not bool(weight.any())
    ]
    # Through .data: autograd may be between a forward and its backward pass, and has to see the weights as they were.
    try:
        for weight in blank:
            weight.normal_()
        found = first_states(run, batch, stacks, stop) if blank else {}
    finally:
        for weight in blank:
            weight.zero_()
    for path in zero:
        if path in found and found[path].shape[:-1] == zero[path].shape:
            zero[path] = zero[path] & (found[path] == 0).all(-1)
    return zero


def placed_by_boxes(
    run: Run,
    batch: Mapping[str, Any],
    stacks: Sequence[Stack],
    contents: Sequence[Content],
    stop: bool,
    answers: Mapping[str, Seen | CaptureError],
) -> set[str]:
    """The stacks in which the boxes of words decide how many places an image has: no rule holds for other boxes."""
    boxes = {k: v for k, v in batch.items() if "bbox" in k and isinstance(v, Tensor) and v.ndim == 3}
    if not boxes or len(contents) < 2:
        return set()
    attended = {path: seen.attended for path, seen in answers.items() if isinstance(seen, Seen)}
    placed: set[str] = set()
    for other in (torch.zeros_like, _spread_out, functools.partial(_spread_out, whole=True)):
        masks: dict[str, Tensor] = {}
        with contextlib.suppress(Exception):  # a model that does not take such boxes
            given = {**batch, **{name: other(value) for name, value in boxes.items()}}
            first_states(run, given, stacks, stop, masks=masks)
        for path, mask in attended.items():
            if mask is not None and path in masks and not torch.equal(mask, masks[path]):
                placed.add(path)
    return placed


def _spread_out(boxes: Tensor, whole: bool = False) -> Tensor:
    """Boxes of shape ``(texts, words, 4)`` that are one point each, from one corner of their range to the other.

    ``whole``: of the range that transformers has: 0 to 1, or whole numbers to 1000.
    """
    steps = torch.linspace(0, 1, boxes.shape[1], device=boxes.device)[:, None]
    top = (1.0 if boxes.is_floating_point() else 1000.0) if whole else float(boxes.max())
    return (steps * top).to(boxes.dtype).expand(boxes.shape).clone()
