"""Which members of a list hand their state to each other, seen in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hf_rksp.capture.calling import first_state, output_state, raw_output


@dataclass(frozen=True)
class Call:
    """One run of a module: what it took, what it returned, and that if it has the shape of what it took."""

    order: int
    took: Tensor | None
    gave: Tensor | None
    keeps_shape: bool


#: Module -> its runs.
Calls = dict[nn.Module, list[Call]]


@dataclass(frozen=True)
class Chain:
    """What is known of one list.

    Attributes:
        ran: whether any member ran.
        is_stream: whether the members, or the runs of one, hand their state to each other.
        changing: members that return a state of another shape than they took.
    """

    ran: bool
    is_stream: bool
    changing: frozenset[nn.Module]


def record_calls(lists: Iterable[nn.Module], probe: Callable[[], object]) -> Calls:
    """The runs of all members of ``lists`` in the forward pass that ``probe`` makes."""
    calls: Calls = {}
    order = 0

    def record(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        nonlocal order
        x = first_state(args, kwargs)
        keeps = x is not None and output_state(output, x) is not None
        calls.setdefault(module, []).append(Call(order, x, raw_output(output), keeps))
        order += 1

    members = {member for container in lists for member in container.children()}
    handles = [member.register_forward_hook(record, with_kwargs=True) for member in members]
    try:
        with torch.no_grad():
            probe()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def chained(container: nn.Module, calls: Calls, marked: bool) -> Chain:
    """Whether the runs of the members of a list chain, in the order in which they ran.

    Args:
        container: the list. calls: from `record_calls`.
        marked: the members are residual blocks by their class: then nothing has to chain (a model may cast between them).
    """
    members = list(container.children())
    runs = sorted(
        ((call, member) for member in members for call in calls.get(member, [])), key=lambda pair: pair[0].order
    )
    if not runs:
        return Chain(False, marked, frozenset())
    changing = frozenset(member for call, member in runs if not call.keeps_shape)
    if marked:
        return Chain(True, True, changing)
    # A bare layer is no block: Sequential(Linear, ReLU, Linear) chains as well.
    if any(not any(member.children()) for member in members) or len(runs) < 2 or len(changing) * 2 > len(members):
        return Chain(True, False, changing)
    if any(call.took is None or call.gave is None for call, _ in runs):
        return Chain(True, False, changing)
    places = {member: place for place, member in enumerate(members)}
    # Where a loop begins anew, something may lie in between: a norm, or the number of the round.
    onward = [(a, b) for (a, x), (b, y) in pairwise(runs) if places[y] > places[x]]
    again = [(a, b) for (a, x), (b, y) in pairwise(runs) if places[y] <= places[x]]
    hands_on = all(_same(a.gave, b.took) for a, b in onward or again)
    hands_on = hands_on and all(a.gave.shape == b.took.shape for a, b in again)
    tokens = all(width_is_last(member, call.took) for call, member in runs if call.took is not None)
    return Chain(True, hands_on and tokens, changing)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


def width_is_last(module: nn.Module, x: Tensor) -> bool:
    """Whether the last axis of ``x`` holds the numbers of one state, by the layers that the module has for it.

    A convolution with as many channels as the second axis, and no layer of the width of the last, speaks against it.
    """
    last = second = first_convolves = False
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(part, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            first_convolves = first_convolves or not (last or second)
            second = second or (x.ndim >= 3 and x.shape[1] in (weight.shape[0], *weight.shape[1:2]))
        elif weight.ndim <= 2:
            last = last or x.shape[-1] in weight.shape
    # Where the sizes fit both (as many channels as columns), what comes first in the block takes the state.
    return not second or (last and not first_convolves)
