"""Signals that no monitor of the package has: critical learning rate, activation kurtosis and the norm of the update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hf_rksp.capture import capture_transitions, find_stacks
from hf_rksp.capture.virtual_step import virtual_step
from hf_rksp.profile.directions import direction_of
from hf_rksp.profile.line_search import first_crossing

OWN = ("critical learning rate", "activation kurtosis", "update norm")


class Own:
    """Measures on the batch of a step, before the step is made.

    Attributes:
        found: signal -> step -> number; infinite if it is not finite.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.stacks = find_stacks(model)
        self.guess = optimizer.param_groups[0]["lr"]
        self.found: dict[str, dict[int, float]] = {name: {} for name in OWN}

    def read(self, step: int, ids: Tensor, labels: Tensor, loss: float, lr: float, search: bool) -> None:
        """Gradients are there, and the weights have not moved; ``search`` looks for the critical learning rate too."""
        self.found["activation kurtosis"][step] = self._kurtosis(ids)
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            self.found["update norm"][step] = self.found["critical learning rate"][step] = math.inf
            return
        direction = direction_of(self.model, self.optimizer).rule(gradients)
        squares = sum(float(part.double().square().sum()) for part in direction.values())
        self.found["update norm"][step] = lr * math.sqrt(squares)
        if search:
            self.found["critical learning rate"][step] = self._ratio(direction, ids, labels, loss, lr)

    @torch.no_grad()
    def _kurtosis(self, ids: Tensor) -> float:
        """Largest over blocks: kurtosis of all entries of a block's output, as trainscope defines it."""
        largest: list[float] = []

        def sink(stack: object, block: object, x: Tensor, y: Tensor) -> None:
            squares = (y - y.mean()).double().square()
            largest.append(float(squares.square().mean() / squares.mean().square()))

        with capture_transitions(self.stacks, sink, refuse=lambda stack, block, error: None):
            self.model(input_ids=ids)
        return max(largest)

    def _ratio(self, direction: dict[str, Tensor], ids: Tensor, labels: Tensor, loss: float, lr: float) -> float:
        """Learning rate over the critical one: that at which the step of the optimizer first raises the loss of its batch."""

        def rises(at: float) -> bool:
            with virtual_step(self.model, direction, at), torch.no_grad():
                return not float(self.model(input_ids=ids, labels=labels).loss) <= loss

        crossing = first_crossing(rises, self.guess)
        if crossing.lr is None:  # every learning rate raises the loss, or none does
            return math.inf if rises(self.guess) else 0.0
        self.guess = crossing.lr
        return lr / crossing.lr
