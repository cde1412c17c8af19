"""Does a mask mark what is real, or what is padding? Most models take 1 for real; a few take it for padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.changes import all_of, another
from hf_rksp.capture.contents import Content
from hf_rksp.capture.fronts import Run, first_states

#: States on either side of a state that convolutions in front of the blocks may mix it with.
_REACH = 2


def marks_padding(
    run: Run, batch: Mapping[str, Any], content: Content, stacks: Sequence[Stack], stop: bool = True
) -> bool:
    """Whether the mask of pixels, samples or features is 1 where there is padding, by what the blocks let through.

    What is padding may not move what is real, while what is real may move the padding. So the states under 1 are padding if
    they move with what lies under 0, and those under 0 do not move with what lies under 1. Three forward passes, up to the last
    block of each stack.

    Args:
        run: one forward pass.
        batch: what the model is called with.
        content: with a mask, which is read as if 1 were real.
        stacks: whose states are looked at.
        stop: end each pass when all stacks are reached.
    """
    real = content.real
    if real is None or content.discrete or real.ndim != 2 or bool(real.all()) or not bool(real.any()):
        return False
    deep = [stack for stack in stacks if len(stack.blocks) > 1]
    passes = [batch]
    passes += [
        {**batch, content.name: another(content, all_of(content), hidden, None, None)} for hidden in (True, False)
    ]
    given, by_zeros, by_ones = (first_states(run, inputs, deep, stop, blocks=True, place=-1) for inputs in passes)
    for path, x in given.items():
        if x.ndim != 3 or x.shape[0] != real.shape[0] or x.shape[1] > real.shape[1]:
            continue
        if any(path not in other or other[path].shape != x.shape for other in (by_zeros, by_ones)):
            continue
        under_one, under_zero = (_deep_inside(part.to(x.device), x.shape[1]) for part in (real, ~real))
        if not (under_one.any() and under_zero.any()):
            continue
        ones_move = (by_zeros[path] != x).any(-1)[under_one].any()
        zeros_move = (by_ones[path] != x).any(-1)[under_zero].any()
        if bool(ones_move & ~zeros_move):
            return True
    return False


def _deep_inside(part: Tensor, states: int) -> Tensor:
    """Of ``states`` windows over the places of a mask: those of which all are in ``part``, with their neighbours."""
    places = part.shape[1]
    edges = torch.linspace(0, places, states + 1, device=part.device).round().long()
    sums = torch.nn.functional.pad(part.long().cumsum(1), (1, 0))
    first = (torch.arange(states, device=part.device) - _REACH).clamp_min(0)
    last = (torch.arange(states, device=part.device) + _REACH + 1).clamp_max(states)
    return sums[:, edges[last]] - sums[:, edges[first]] == edges[last] - edges[first]
