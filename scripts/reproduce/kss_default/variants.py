"""What the balanced schedule could have been: kept so that the reasons for it can be run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_rksp.spectral.shaping import project
from hf_rksp.training import SpectralShaper


class AtEachLayer(SpectralShaper):
    """Scaled against the gradient that arrives at the layer itself, with what deeper layers have added."""

    def _add(self, projected: Tensor, basis: Tensor, share: float, reference: list[Tensor], gradient: Tensor) -> Any:
        return super()._add(projected, basis, share, [gradient.flatten(1).norm(dim=1)], gradient)


class WithoutConflict(SpectralShaper):
    """Of what is added, the part that points against the task's gradient of the sequence is taken out."""

    def _add(self, projected: Tensor, basis: Tensor, share: float, reference: list[Tensor], gradient: Tensor) -> Any:
        total = super()._add(projected, basis, share, reference, gradient)
        if total is None:
            return None
        task = gradient.flatten(1)
        added = total.flatten(1) - task
        along = (added * task).sum(1, keepdim=True) / task.square().sum(1, keepdim=True).clamp_min(1e-30)
        return (total.flatten(1) - along.clamp_max(0) * task).view_as(total)


class SlowerRamp(SpectralShaper):
    """Full weight at five times the threshold instead of one and a half times."""

    full_strength = 4.0


class Alarm(SpectralShaper):
    """Little weight above the threshold, and ten times as much at blocks other than the first above three."""

    #: Of that little weight, what is there without alarm.
    calm = 1.0

    def _strength(self, layer: Any, radius: float) -> float:
        strength = super()._strength(layer, radius)
        if layer.block.index == 0 or not strength:
            return strength
        return strength * (self.calm + (10 - self.calm) * min(1.0, max(0.0, (radius / 3 - 1) / 0.5)))


class AlarmAlone(Alarm):
    """The same without the little weight at other blocks than the first."""

    calm = 0.0


class OutputsAlone(SpectralShaper):
    """Pushes at the outputs of the blocks: a modulus may not be made small by making the input large."""

    def _push(self, layers, *args) -> None:
        super()._push(layers, *args)
        for layer in layers:
            layer.at_x = None


class InputsAlone(SpectralShaper):
    """Pushes at the inputs of the blocks."""

    def _push(self, layers, *args) -> None:
        super()._push(layers, *args)
        for layer in layers[:-1]:  # the last one's output takes the reference
            layer.at_y = None


class FromTheStepBefore(SpectralShaper):
    """Directions and gradients at the sums are those of the step before, which would make accumulation exact."""

    def _push(self, layers, last, directions, projected, weights, solved) -> None:
        before = getattr(self, "_before", None)
        self._before = (directions, solved)
        if before is None:
            return
        with torch.no_grad():
            states = ((layer.x.flatten(0, -2), layer.y.flatten(0, -2)) for layer in layers)
            projected = [
                (project(x, basis, weights), project(y, basis, weights))
                for (x, y), basis in zip(states, before[0], strict=True)
            ]
        super()._push(layers, last, before[0], projected, weights, before[1])


VARIANTS: dict[str | None, Callable[..., SpectralShaper]] = {
    None: SpectralShaper,
    "at each layer": AtEachLayer,
    "without conflict": WithoutConflict,
    "alarm": Alarm,
    "alarm alone": AlarmAlone,
    "outputs alone": OutputsAlone,
    "slower ramp": SlowerRamp,
    "inputs alone": InputsAlone,
    "from the step before": FromTheStepBefore,
}
