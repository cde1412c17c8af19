"""Which members of a list hand their state to each other, seen in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.states import first_state, output_state, raw_output

#: The lists of modules in a model, by their paths.
ModuleLists = Mapping[str, nn.ModuleList | nn.Sequential]
#: From this cosine between the states that enter a module and those that leave it on, the module adds to its state.
_RESIDUAL = 0.5


@dataclass(frozen=True)
class Run:
    """One run of a member of a list.

    Attributes:
        module: the member.
        read: whether it takes a state and returns a tensor.
        keeps_shape: whether it returns a state of the shape that it took.
        handed_on: whether it took the very state that the run before it in the list returned.
        fits: whether its state has the shape of what that run returned.
        again: whether it took the very state that the run before it took.
        width_last: whether the last axis of the state holds the numbers of one state.
        cosine: between the state that it took and the one that it returned; 0 if the shapes differ.
    """

    module: nn.Module
    read: bool
    keeps_shape: bool
    handed_on: bool = False
    fits: bool = False
    again: bool = False
    width_last: bool = False
    cosine: float = 0.0


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


def record_runs(lists: Mapping[str, nn.Module], probe: Callable[[], object]) -> dict[str, list[Run]]:
    """The runs of the members of each of ``lists`` in the forward pass that ``probe`` makes, in the order in which they ran.

    Of each list two states are held at a time, whatever its length.
    """
    runs: dict[str, list[Run]] = {name: [] for name in lists}
    before: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    owners: dict[nn.Module, list[str]] = {}
    for name, members in lists.items():
        for member in members.children():
            owners.setdefault(member, []).append(name)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        x, y = first_state(args, kwargs), raw_output(output)
        after = None if x is None else output_state(output, x)
        width_last = x is not None and any(module.children()) and width_is_last(module, x)
        cosine = _cosine(x, after) if x is not None and after is not None and width_last else 0.0
        for name in owners[module]:
            took, gave = before.get(name, (None, None))
            fits = x is not None and gave is not None and gave.shape == x.shape
            runs[name].append(
                Run(
                    module,
                    x is not None and y is not None,
                    after is not None,
                    _same(gave, x),
                    fits,
                    _same(took, x),
                    width_last,
                    cosine,
                )
            )
            before[name] = x, y

    handles = [member.register_forward_hook(record, with_kwargs=True) for member in owners]
    try:
        with torch.no_grad():
            probe()
    finally:
        for handle in handles:
            handle.remove()
    return runs


def chained(container: nn.Module, runs: list[Run], marked: bool) -> Chain:
    """Whether the runs of the members of a list chain, in the order in which they ran.

    Args:
        container: the list.
        runs: of its members, from `record_runs`.
        marked: the members are residual blocks by their class: then nothing has to chain (a model may cast between them).
    """
    members = list(container.children())
    if not runs:
        return Chain(False, marked, frozenset())
    changing = frozenset(run.module for run in runs if not run.keeps_shape)
    if marked:
        return Chain(True, True, changing)
    # A bare layer is no block: Sequential(Linear, ReLU, Linear) chains as well.
    if any(not any(member.children()) for member in members) or len(runs) < 2 or len(changing) * 2 > len(members):
        return Chain(True, False, changing)
    if not all(run.read for run in runs):
        return Chain(True, False, changing)
    places = {member: place for place, member in enumerate(members)}
    # Where a loop begins anew, something may lie in between: a norm, or the number of the round.
    onward = [later for earlier, later in pairwise(runs) if places[later.module] > places[earlier.module]]
    again = [later for earlier, later in pairwise(runs) if places[later.module] <= places[earlier.module]]
    hands_on = all(run.handed_on for run in onward or again) and all(run.fits for run in again)
    return Chain(True, hands_on and all(run.width_last for run in runs), changing)


def looks_residual(runs: list[Run]) -> bool:
    """Whether the members of a list take and return states of one shape, and add to them, without handing them on.

    Members that all take the same state are heads.
    """
    later = runs[1:]
    return (
        bool(later)
        and all(run.keeps_shape and run.width_last and run.cosine > _RESIDUAL for run in runs)
        and all(run.fits for run in later)
        and not all(run.again for run in later)
    )


def looks_like_one_block(runs: list[Run]) -> bool:
    """Whether a single run is that of a residual block: of a model with one layer, which hands its state to no other."""
    return len(runs) == 1 and runs[0].keeps_shape and runs[0].width_last and runs[0].cosine > _RESIDUAL


def _cosine(x: Tensor, y: Tensor) -> float:
    """Mean over the states of the cosine between what enters and what leaves."""
    return float(torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1).mean())


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


def width_is_last(module: nn.Module, x: Tensor) -> bool:
    """Whether the last axis of ``x`` holds the numbers of one state, by the layers that the module has for it.

    A convolution with as many channels as the second axis, and no layer of the width of the last, speaks against it.
    """
    last = second = first_convolves = False
    norms: set[int] = set()
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(part, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            first_convolves = first_convolves or not (last or second)
            second = second or (x.ndim >= 3 and x.shape[1] in (weight.shape[0], *weight.shape[1:2]))
        elif weight.ndim <= 2:
            last = last or x.shape[-1] in weight.shape
            if weight.ndim == 1:
                norms.update(weight.shape)
    if x.ndim >= 4 and x.shape[1] in norms and x.shape[-1] not in norms:  # ViTDet turns the axes inside its blocks
        return False
    # Where the sizes fit both (as many channels as columns), what comes first in the block takes the state.
    return not second or (last and not first_convolves)
