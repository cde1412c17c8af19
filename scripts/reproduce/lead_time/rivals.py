"""Other tools with their defaults, where they are installed: trainscope, trainpulse and stabilityguard."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

#: Step, loss, gradient norm of the whole model, and of each weight -> whether there is an alarm.
Rule = Callable[[int, float, float, Mapping[str, float]], bool]


#: Multiples of a tool's own threshold that are tried: 1 is its default.
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: Steps of which one alarm is kept.
_EVERY = 5


def _trainscope(name: str, scale: float) -> Rule:
    """Its detectors follow the loss."""
    module = importlib.import_module(f"trainscope.core.detectors.{name}")
    kind: Any = getattr(module, {"changepoint": "ChangePointDetector", "z_score": "ZScoreDetector"}[name])
    detector = kind(threshold=scale * kind().threshold)

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        score = detector.update(loss)
        return score is not None and score > 0  # a fall of the loss is a change too

    return rule


def _trainpulse(scale: float) -> Rule:
    package: Any = importlib.import_module("trainpulse")
    config = package.MonitorConfig()
    # The threshold of the loss is a multiple of its mean, so that 1 says nothing.
    config.loss_spike_threshold = 1 + scale * (config.loss_spike_threshold - 1)
    config.grad_norm_threshold *= scale
    monitor = package.Monitor(config)

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        alerts = [*monitor.log("loss", step, loss), *monitor.log("grad_norm", step, norm)]
        return any("plateau" not in str(getattr(alert, "message", alert)).lower() for alert in alerts)

    return rule


def _stabilityguard(scale: float) -> Rule:
    kind: Any = importlib.import_module("stabilityguard.core.spike_detector").SpikeDetector
    detector = kind(threshold=scale * kind().threshold)

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        broken = {name for name, value in norms.items() if not math.isfinite(value)}
        return bool(detector.check(dict(norms), broken)[0])

    return rule


RIVALS: dict[str, Callable[[float], Rule]] = {
    "trainscope, CUSUM": lambda scale: _trainscope("changepoint", scale),
    "trainscope, z-score": lambda scale: _trainscope("z_score", scale),
    "trainpulse": _trainpulse,
    "stabilityguard": _stabilityguard,
}


class Rivals:
    """Feeds every step to the tools that are installed, at several multiples of their thresholds.

    Attributes:
        alarms: tool -> multiple -> steps with an alarm, at most one of five; ``None`` if the tool is not installed.
    """

    def __init__(self) -> None:
        self._rules: dict[tuple[str, str], Rule] = {}
        self.alarms: dict[str, dict[str, list[int]] | None] = {}
        for name, make in RIVALS.items():
            try:
                self._rules |= {(name, f"{scale:g}"): make(scale) for scale in SCALES}
                self.alarms[name] = {f"{scale:g}": [] for scale in SCALES}
            except ImportError:
                self.alarms[name] = None

    def step(self, step: int, loss: float, norm: float, norms: Mapping[str, float]) -> None:
        """One step of the run."""
        for (name, scale), rule in self._rules.items():
            tool = self.alarms[name]
            if rule(step, loss, norm, norms) and tool is not None:
                found = tool[scale]
                if not found or step // _EVERY > found[-1] // _EVERY:
                    found.append(step)
