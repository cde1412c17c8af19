"""What the guard knows of a step: sums that add up over the processes, and the numbers they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.ranks import world_size
from hf_rksp.training.guard.numbers import wide


@dataclass(frozen=True)
class Gradients:
    """The gradients of a step as `gradient_numbers` gives them, and the names of their weights (none if not known by weight)."""

    numbers: Tensor
    names: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """A step in plain numbers, the same on every process; ``None`` for what is not known.

    Attributes:
        step: of the optimizer.
        loss: mean over batches and processes.
        norm, update: of the gradient, and of the change of the weights per learning rate.
        alarms: how many alarms the monitors have raised since the step before.
        broken: weights whose gradients are not finite.
    """

    step: int
    loss: float | None
    norm: float | None
    update: float | None
    alarms: int
    broken: tuple[str, ...]


@dataclass(frozen=True)
class Sums:
    """The part of one process.

    Attributes:
        step: of the optimizer.
        values: what adds up, shape ``(n,)``, in `wide`, on the device.
        names: of the weights.
    """

    step: int
    values: Tensor
    names: tuple[str, ...]

    def measured(self, total: Tensor) -> Measured:
        """The numbers of the step.

        Args:
            total: ``values`` added up over the processes, in main memory.
        """
        losses, alarms, updates, gradients, loss, update, *rest = total.tolist()
        norm = _root(rest[0] / gradients) if gradients else None
        broken = tuple(name for name, flag in zip(self.names, rest[1:], strict=True) if flag)
        return Measured(
            self.step,
            loss / losses if losses else None,
            norm,
            _root(update) if updates else None,
            round(alarms),
            broken,
        )


def sums_of(
    step: int,
    losses: Sequence[tuple[Tensor, bool]],
    gradients: Gradients | None,
    update: Tensor | None,
    alarms: int,
) -> Sums | None:
    """The sums of this process; ``None`` if nothing is known of the step. Nothing waits for the device.

    Args:
        step: of the optimizer.
        losses: of the batches of the step, and whether each is a share of the mean over batches and processes, instead of a mean.
        gradients: of the step.
        update: squared norm per learning rate of the part of the last update that this process counts.
        alarms: of the monitors.
    """
    known = [loss for loss, _ in losses] + ([] if update is None else [update])
    known += [] if gradients is None else [gradients.numbers]
    if not known:
        return None
    kind = wide(known[0].device)
    like = known[0].new_zeros(1, dtype=kind)
    counts = sum(1 / len(losses) / world_size() if share else 1.0 for _, share in losses)
    # One small copy to the device; what every process knows is divided, because sums are made of all of them.
    fixed = torch.tensor([counts, alarms, update is not None, (gradients is not None) / world_size()], dtype=kind)
    parts = [
        fixed.to(like.device, non_blocking=True),
        torch.stack([one.to(kind) for one, _ in losses]).sum(0, keepdim=True).to(like) if losses else like,
        like if update is None else update.reshape(1).to(like),
        like if gradients is None else gradients.numbers.to(like),
    ]
    return Sums(step, torch.cat(parts), () if gradients is None else tuple(gradients.names))


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
