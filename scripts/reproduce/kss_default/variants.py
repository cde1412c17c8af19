"""What the balanced schedule could have been: kept so that the reasons for it can be run again.

Each is a schedule of KSS: it acts on the layers that were measured, as `hf_rksp.training.kss.schedule` says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_rksp import KSSConfig, SpectralShaper
from hf_rksp.capture import Layout, Transition
from hf_rksp.spectral.shaping import project
from hf_rksp.training.kss.balanced import Balanced
from hf_rksp.training.kss.schedule import Measured, sizes_of_sequences


class AtEachLayer(Balanced):
    """Scaled against the gradient that arrives at the layer itself, with what deeper layers have added."""

    def add(
        self,
        layout: Layout,
        projected: Tensor,
        basis: Tensor,
        strength: float,
        reference: list[Tensor],
        gradient: Tensor,
    ) -> Tensor | None:
        own = [sizes_of_sequences(layout.read(gradient), layout)]
        return super().add(layout, projected, basis, strength, own, gradient)


class WithoutConflict(Balanced):
    """Of what is added, the part that points against the task's gradient of the sequence is taken out."""

    def add(
        self,
        layout: Layout,
        projected: Tensor,
        basis: Tensor,
        strength: float,
        reference: list[Tensor],
        gradient: Tensor,
    ) -> Tensor | None:
        total = super().add(layout, projected, basis, strength, reference, gradient)
        if total is None:
            return None
        task = gradient.flatten(1)
        added = total.flatten(1) - task
        along = (added * task).sum(1, keepdim=True) / task.square().sum(1, keepdim=True).clamp_min(1e-30)
        return (total.flatten(1) - along.clamp_max(0) * task).view_as(total)


class SlowerRamp(Balanced):
    """Full weight at five times the threshold instead of one and a half times."""

    full_strength = 4.0


class Alarm(Balanced):
    """Little weight above the threshold, and ten times as much at blocks other than the first above three."""

    #: Of that little weight, what is there without alarm.
    calm = 1.0

    def strength(self, layer: Transition, last: Transition, radius: float) -> float:
        strength = super().strength(layer, last, radius)
        if layer.block.index == 0 or not strength:
            return strength
        return strength * (self.calm + (10 - self.calm) * min(1.0, max(0.0, (radius / 3 - 1) / 0.5)))


class AlarmAlone(Alarm):
    """The same without the little weight at other blocks than the first."""

    calm = 0.0


class OutputsAlone(Balanced):
    """Pushes at the outputs of the blocks: a modulus may not be made small by making the input large."""

    def act(self, measured: Measured) -> None:
        super().act(measured)
        for layer in measured.layers:
            layer.at_x = None


class InputsAlone(Balanced):
    """Pushes at the inputs of the blocks."""

    def act(self, measured: Measured) -> None:
        super().act(measured)
        for layer in measured.layers[:-1]:  # the last one's output takes the reference
            layer.at_y = None


class FromTheStepBefore(Balanced):
    """Directions and gradients at the sums are those of the step before, which would make accumulation exact."""

    before: Measured | None = None

    def act(self, measured: Measured) -> None:
        before, self.before = self.before, measured
        if before is None:
            return
        with torch.no_grad():
            read, weights = measured.layout.read, measured.weights
            projected = [
                tuple(project(read(state).flatten(0, 1), basis, weights) for state in (layer.x, layer.y))
                for layer, basis in zip(measured.layers, before.directions, strict=True)
            ]
        old = {"directions": before.directions, "solved": before.solved, "gradients": before.gradients}
        super().act(replace(measured, projected=projected, **old))


_SCHEDULES: dict[str | None, type[Balanced]] = {
    None: Balanced,
    "at each layer": AtEachLayer,
    "without conflict": WithoutConflict,
    "alarm": Alarm,
    "alarm alone": AlarmAlone,
    "outputs alone": OutputsAlone,
    "slower ramp": SlowerRamp,
    "inputs alone": InputsAlone,
    "from the step before": FromTheStepBefore,
}
VARIANTS = tuple(name for name in _SCHEDULES if name)


def shaper_of(variant: str | None, model: torch.nn.Module, config: KSSConfig) -> SpectralShaper:
    """KSS with a variant of the balanced schedule; without one, with the schedule of ``config``."""
    schedule: Any = _SCHEDULES[variant](config) if variant else None
    return SpectralShaper(model, config, schedule=schedule)
