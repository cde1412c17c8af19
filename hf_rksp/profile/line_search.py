"""Searches for a learning rate: the first that raises the loss, and the first that changes the output of a block too far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, capture_transitions
from hf_rksp.capture.virtual_step import restored, virtual_step
from hf_rksp.errors import InputError

#: Doublings or halvings after which no crossing is assumed.
MAX_DOUBLINGS = 40
#: Bisections of an interval of a factor of 2: its width is then 1/16 of its lower end.
_BISECTIONS = 4
#: Output of each block, by the path of its stack and its own path (with the number of the run if it runs several times).
_States = dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Crossing:
    """A first crossing.

    Attributes:
        lr: middle of the last interval, whose width is 1/16 of its lower end; ``None`` if nothing crossed within 40 doublings.
        evaluations: calls of the predicate.
    """

    lr: float | None
    evaluations: int


@dataclass(frozen=True)
class CoordinateCheck:
    """The learning rate at which one virtual step changes the output of a block.

    Attributes:
        lr: learning rate at which the largest relative change of the output of a block by one virtual step reaches
            ``threshold``, to 1/32; ``None`` if no learning rate within 40 doublings does.
        block: path of the block with that change; ``None`` if ``lr`` is ``None``.
        threshold: on ``||y' - y|| / ||y||`` (Frobenius norms over all tokens of a batch, padding included).
        forwards: forward passes.
    """

    lr: float | None
    block: str | None
    threshold: float
    forwards: int


def first_crossing(crossed: Callable[[float], bool], start: float) -> Crossing:
    """The least learning rate at which ``crossed`` turns true, on a grid of factors of 2 refined by bisection.

    If ``crossed(start)`` is true, the search halves the learning rate until ``crossed`` is false, else it doubles the learning
    rate until ``crossed`` is true. This is the line search of critical sharpness (Kalra et al., arXiv:2601.16979). The search
    does not see an interval further below in which ``crossed`` is true as well.

    Args:
        crossed: predicate of a learning rate.
        start: a point of the grid, above zero. A better guess saves calls.

    Raises:
        InputError: ``start`` is not finite and above zero.

    >>> first_crossing(lambda lr: lr > 0.3, start=1.0)
    Crossing(lr=0.3046875, evaluations=7)
    """
    if not (math.isfinite(start) and start > 0):
        raise InputError(f"start={start!r}: pass a finite learning rate above zero")
    down = crossed(start)
    evaluations, at = 1, start
    for _ in range(MAX_DOUBLINGS):
        following = at / 2 if down else at * 2
        evaluations += 1
        if crossed(following) != down:
            break
        at = following
    else:
        return Crossing(None, evaluations)
    low, high = (following, at) if down else (at, following)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        evaluations += 1
        low, high = (low, middle) if crossed(middle) else (middle, high)
    return Crossing((low + high) / 2, evaluations)


def coordinate_check(
    model: nn.Module,
    stacks: Sequence[Stack],
    run: Callable[[], object],
    direction: Mapping[str, Tensor],
    start: float,
    threshold: float = 0.1,
) -> CoordinateCheck | None:
    """The learning rate at which one step along ``direction`` changes the output of some block by ``threshold``.

    The coordinate check of muP (Yang et al., arXiv:2203.03466, appendix D.1), solved for the learning rate. Holds the output of
    every block for one batch.

    Args:
        model, stacks: the model and its stacks, from `hf_rksp.capture.find_stacks`.
        run: one forward pass.
        direction: as for `hf_rksp.capture.virtual_step.virtual_step`.
        start: a first guess of the learning rate.
        threshold: relative change.

    Returns:
        ``None`` if no block returned a state.
    """
    with restored(model):
        before = _outputs(stacks, run)
    if not before:
        return None
    changes: dict[float, tuple[float, str]] = {}

    def crossed(lr: float) -> bool:
        with virtual_step(model, direction, lr):
            after = _outputs(stacks, run)
        changes[lr] = max(_change(y, after.get(key), key[1]) for key, y in before.items())
        return not changes[lr][0] <= threshold

    small = start / 1024  # there the change is linear in the learning rate, which gives a better start
    crossed(small)
    change = changes[small][0]
    guess = small * threshold / change if math.isfinite(change) and change > 0 else start
    crossing = first_crossing(crossed, guess)
    forwards = crossing.evaluations + 2
    lr = crossing.lr
    if lr is None:
        return CoordinateCheck(None, None, threshold, forwards)
    nearest = min((tried for tried in changes if changes[tried][0] > threshold), key=lambda tried: abs(tried - lr))
    return CoordinateCheck(lr, changes[nearest][1], threshold, forwards)


def _outputs(stacks: Sequence[Stack], run: Callable[[], object]) -> _States:
    outputs: _States = {}

    def sink(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        outputs[stack.path, block.path] = y.clone()  # a later block may write into it

    with torch.no_grad(), capture_transitions(stacks, sink, refuse=lambda stack, block, error: None):
        run()
    return outputs


def _change(before: Tensor, after: Tensor | None, path: str) -> tuple[float, str]:
    """Relative change and path of the block; infinite if a state is not finite, is missing, or has another shape."""
    if after is None or after.shape != before.shape:
        return math.inf, path
    moved = float((after.double() - before.double()).norm())
    size = float(before.double().norm())
    change = moved / size if size else (math.inf if moved else 0.0)
    return (change if math.isfinite(change) else math.inf), path
