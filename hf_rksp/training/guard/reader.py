"""What the guard reads of every step: losses, the norm of the gradient and that of the update, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.attach import Attached
from hf_rksp.capture.hvp import trainable
from hf_rksp.ranks import world_size
from hf_rksp.training.gate import deepspeed_broken, deepspeed_norm
from hf_rksp.training.guard.measured import Gradients, Sums, sums_of
from hf_rksp.training.guard.numbers import Update, gradient_numbers, per_rate
from hf_rksp.training.preconditioner import device_rate
from hf_rksp.training.watch import Watch


class StepReader:
    """Reads the steps of a run.

    Attributes:
        watch: of the run; there once it has begun.
        weights: the trainable ones, by name.
        update: squared norm per learning rate of the part of the last update that this process counts; ``None`` if not known.
        told: whether the gradients of this step were said to be there.
    """

    def __init__(self) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._hooks = Attached()
        self.forget()

    def forget(self) -> None:
        """Nothing is known of any step."""
        self.update: Tensor | None = None
        self.told = False
        self._losses: list[tuple[Tensor, bool]] = []
        self._gradients: Gradients | None = None
        self._rate: Tensor | float | None = None

    def begin(self, watch: Watch) -> None:
        """A run begins: look at what the model returns, if nobody says the losses."""
        self.watch = watch
        self._find_weights()
        if not self.watch.says_losses:
            self._hooks.after(self.watch.model, self._saw)

    def _find_weights(self) -> None:
        """Not before the run begins, because FSDP2 puts other parameters in their place; and again if some are unfrozen."""
        self.weights = trainable(self.watch.model)
        self._moves = Update(self.weights)
        self._parameters = list(self.watch.model.parameters())
        self._trained = self._count_trained()

    def _count_trained(self) -> int:
        return sum(weight.requires_grad for weight in self._parameters)

    def _saw(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # With a number of labels the loss is a sum over that of all batches and processes: a share of the mean.
            self._losses.append((loss.detach().reshape(()), kwargs.get("num_items_in_batch") is not None))

    def step_begin(self) -> None:
        """A step begins."""
        self._losses, self._gradients, self.told = [], None, False
        self.watch.losses.clear()
        if self._trained != self._count_trained():
            self._find_weights()

    def gradients_ready(self) -> None:
        """Take the norm of the gradient."""
        self._gradients, self.told = self._read_gradients(), True

    def _read_gradients(self) -> Gradients | None:
        gate = self.watch.gate
        if gate is not None and gate.says_ready and (norm := deepspeed_norm(gate.deepspeed)) is not None:
            # Every process has the whole norm. DeepSpeed has it in main memory, so looking at it waits for nothing.
            broken = [] if norm.isfinite() else deepspeed_broken(self.weights)
            squares = norm.reshape(1).square() / world_size()
            return Gradients(torch.cat([squares, torch.ones(len(broken), dtype=torch.float64)]), broken)
        numbers = gradient_numbers(self.weights)
        if numbers is None:
            return None
        if gate is not None and (scale := gate.gradient_scale):
            numbers[0] /= scale**2
        return Gradients(numbers, list(self.weights))

    def weights_move(self) -> None:
        """The optimizer is about to make its step."""
        gate = self.watch.gate
        self._rate = device_rate(self.watch.optimizer, 1.0 if gate is None else gate.factor)
        self._moves.begin()

    def weights_moved(self) -> None:
        """The step was made or left out."""
        self.update = per_rate(self._moves.end(), self._rate)

    def sums(self, step: int, alarms: int) -> Sums | None:
        """The sums of this process for a step, with the number of alarms of the monitors; ``None`` if nothing is known of it."""
        losses = self._losses or [(loss, False) for loss in self.watch.losses]
        return sums_of(step, losses, self._gradients, self.update, alarms)

    def close(self) -> None:
        """Look no more."""
        self._hooks.remove()
