"""On which blocks KSS pushes, and from which spectral radius on: candidates for the default, and parts of the schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp import KSSConfig, SpectralShaper
from hf_rksp.capture import Layout, Transition
from hf_rksp.capture.tap import GradientRule
from hf_rksp.config import BalancedKSSConfig
from hf_rksp.training.kss.balanced import Balanced
from hf_rksp.training.kss.schedule import Measured

#: Steps from one record of the spectral radii to the next; the first steps are all recorded.
EVERY = 50
_BEGIN = 5
#: Step -> index of a block -> strength of the push.
Doses = dict[int, dict[int, float]]
#: The rule that repeats the strengths of another run.
RANDOM = "random direction"


class Recorded(Balanced):
    """The schedule as it is, with a record: spectral radius of each block, and root mean square of its input and output.

    Attributes:
        step: of the run; set from outside.
        record: step -> for each block its radius, the size of its input and of its output.
        doses: step -> index of a block -> strength of the push, where there was one.
    """

    def __init__(self, config: BalancedKSSConfig) -> None:
        super().__init__(config)
        self.step = 0
        self.record: dict[int, list[tuple[float, float, float]]] = {}
        self.doses: Doses = {}

    def act(self, measured: Measured) -> None:
        if self.step < _BEGIN or self.step % EVERY == 0:
            self.record[self.step] = [
                (
                    float(radius),
                    float(layer.x.detach().square().mean().sqrt()),
                    float(layer.y.detach().square().mean().sqrt()),
                )
                for layer, radius in zip(measured.layers, measured.radii, strict=True)
            ]
        self.push(measured)

    def push(self, measured: Measured) -> None:
        super().act(measured)

    def strength(self, layer: Transition, last: Transition, radius: float) -> float:
        found = self.dose(layer, last, radius)
        if found:
            self.doses.setdefault(self.step, {})[layer.block.index] = found
        return found

    def dose(self, layer: Transition, last: Transition, radius: float) -> float:
        return super().strength(layer, last, radius)


class Watching(Recorded):
    """Records, and does nothing."""

    def push(self, measured: Measured) -> None:
        pass


class FirstAlone(Recorded):
    """Pushes on the first block alone."""

    def block_weight(self, layer: Transition, last: Transition) -> float:
        return super().block_weight(layer, last) if layer.block.index == 0 else 0.0


class OthersAlone(Recorded):
    """Pushes on all blocks but the first."""

    def block_weight(self, layer: Transition, last: Transition) -> float:
        return 0.0 if layer.block.index == 0 else 1.0


class RandomDirection(Recorded):
    """Adds what KSS adds, block by block and step by step, in a random direction: is it the spectrum, or any push of this size?

    Attributes:
        given: `doses` of the run with KSS.
    """

    def __init__(self, config: BalancedKSSConfig) -> None:
        super().__init__(config)
        self.given: Doses = {}
        self.draw = torch.Generator().manual_seed(config.seed)

    def dose(self, layer: Transition, last: Transition, radius: float) -> float:
        return self.given.get(self.step, {}).get(layer.block.index, 0.0)

    def rule(
        self, layout: Layout, projected: Tensor, basis: Tensor, strength: float, reference: list[Tensor]
    ) -> GradientRule:
        noise = torch.randn(projected.shape, generator=self.draw, dtype=projected.dtype)
        return super().rule(layout, noise, basis, strength, reference)


class Relative(Recorded):
    """A block is pushed on above ``factor`` times its own radius in the first steps, if that is above the threshold."""

    factor = 1.5

    def __init__(self, config: BalancedKSSConfig) -> None:
        super().__init__(config)
        self.own: dict[int, list[float]] = defaultdict(list)

    def dose(self, layer: Transition, last: Transition, radius: float) -> float:
        own = self.own[layer.block.index]
        if len(own) < _BEGIN:
            own.append(radius)
        threshold = max(self.config.upper_threshold, self.factor * sorted(own)[len(own) // 2])
        strength = (radius / threshold - 1) / self.full_strength
        if not strength > 0:
            return 0.0
        return min(1.0, strength) * self.block_weight(layer, last) * self.config.weight


class RelativeTo3(Relative):
    """The same above three times its own radius."""

    factor = 3.0


_RULES: Mapping[str | None, type[Recorded]] = {
    None: Recorded,
    "first alone": FirstAlone,
    "others alone": OthersAlone,
    RANDOM: RandomDirection,
    "relative": Relative,
    "relative to 3": RelativeTo3,
}
RULES = tuple(name for name in _RULES if name)


def without_rule(kss: dict[str, Any]) -> dict[str, Any]:
    """The settings of KSS alone."""
    return {name: value for name, value in kss.items() if name != "rule"}


def shaper_of(
    model: nn.Module, kss: dict[str, Any] | None, seed: int, given: Doses | None = None
) -> tuple[SpectralShaper, Recorded]:
    """KSS with a rule; without KSS a shaper that only records.

    Args:
        kss: settings of KSS and the name of a ``rule``; ``None`` is no KSS.
        given: the strengths that `RANDOM` repeats.
    """
    config: Any = KSSConfig(**without_rule(kss or {}), seed=seed)
    rule = Watching(config) if kss is None else _RULES[kss.get("rule")](config)
    if isinstance(rule, RandomDirection):
        rule.given = given or {}
    return SpectralShaper(model, config, schedule=rule), rule
