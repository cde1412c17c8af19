"""Does a mask mark what is real, or what is padding, or neither? torch and transformers take 1 for opposite things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.changes import all_of, another, spread
from hf_rksp.capture.contents import Content, other_mask
from hf_rksp.capture.fronts import Run, first_states, moved_states

#: What a mask is read as, against what is taken of it by its name.
Reading = Literal["real", "padding", "neither"]
#: States on either side of a state that convolutions in front of the blocks may mix it with.
_REACH = 2


def what_is_marked(
    run: Run, batch: Mapping[str, Any], content: Content, stacks: Sequence[Stack], config: object, stop: bool = True
) -> Reading | None:
    """What ``content.real`` marks, by what the blocks let through; ``None`` if the batch does not show it.

    What is padding may not move what is real, while what is real may move the padding. Where the states do not depend on the
    mask, or everything moves everything, padding is what holds one and the same id, or the same number all through. Four
    forward passes.

    Args:
        run: one forward pass.
        batch: what the model is called with.
        content: with a mask that marks some of its places and others not.
        stacks: whose states are looked at.
        config: of the model: it names the ids that stand for images and the like.
        stop: end each pass when all stacks are reached.
    """
    real, key = content.real, content.mask
    if real is None or key is None or real.ndim != 2 or bool(real.all()) or not bool(real.any()):
        return None
    given = first_states(run, batch, stacks, stop, blocks=True, behind=True)
    turned = first_states(run, {**batch, key: other_mask(key, batch[key], content)}, stacks, stop, True, behind=True)
    if not any(path in turned and _differ(x, turned[path]) for path, x in given.items()):
        return by_contents(content)  # the model makes nothing of it, at most its loss does
    by_hidden, by_real = (
        first_states(
            run,
            {**batch, content.name: another(content, all_of(content), hidden, config, None)},
            stacks,
            stop,
            True,
            behind=True,
        )
        for hidden in (True, False)
    )
    answers: dict[int, Reading | None] = {}
    for path, x in given.items():
        if path in by_hidden and path in by_real and x.ndim == 3:
            for reach in (0, _REACH):
                answers[reach] = answers.get(reach) or _compared(x, by_hidden[path], by_real[path], real, reach)
    told = next((answer for answer in answers.values() if answer in ("real", "padding")), None)
    return told or by_contents(content) or "neither"


def by_contents(content: Content) -> Reading | None:
    """What the contents say: padding is all alike, and what is real is not."""
    real = spread(content.real, content.value)
    if real is None:
        return None
    alike = [len(content.value[part].unique()) == 1 for part in (real, ~real)]
    if alike[0] == alike[1]:
        return None
    return "padding" if alike[0] else "real"


def _compared(x: Tensor, by_hidden: Tensor, by_real: Tensor, real: Tensor, reach: int) -> Reading | None:
    """What one stack says; ``None`` if its states are not those of the content."""
    if by_hidden.shape != x.shape or by_real.shape != x.shape:
        return None
    moved, moves = (moved_states(x, other) for other in (by_hidden, by_real))
    if x.shape[0] != real.shape[0]:  # tokens first
        if x.shape[:2] != real.shape[::-1]:
            return None
        moved, moves = moved.T, moves.T
    if moved.shape[1] > real.shape[1]:
        return None
    inside, outside = (_deep_inside(part.to(x.device), moved.shape[1], reach) for part in (real, ~real))
    if not (inside.any() and outside.any()):
        return None
    real_moves, hidden_moves = bool(moved[inside].any()), bool(moves[outside].any())
    if not real_moves:
        return "real"
    return "neither" if hidden_moves else "padding"


def _differ(x: Tensor, other: Tensor) -> bool:
    return x.shape != other.shape or bool(moved_states(x, other).any())


def _deep_inside(part: Tensor, states: int, reach: int) -> Tensor:
    """Of ``states`` windows over the places of a mask: those of which all are in ``part``, with ``reach`` neighbours."""
    places = part.shape[1]
    edges = torch.linspace(0, places, states + 1, device=part.device).round().long()
    sums = torch.nn.functional.pad(part.long().cumsum(1), (1, 0))
    first = (torch.arange(states, device=part.device) - reach).clamp_min(0)
    last = (torch.arange(states, device=part.device) + reach + 1).clamp_max(states)
    return sums[:, edges[last]] - sums[:, edges[first]] == edges[last] - edges[first]
