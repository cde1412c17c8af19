"""Other tools with their defaults, where they are installed: trainscope, trainpulse and stabilityguard."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

#: Step, loss, gradient norm of the whole model, and of each weight -> whether there is an alarm.
Rule = Callable[[int, float, float, Mapping[str, float]], bool]


def _trainscope(name: str) -> Rule:
    """Its detectors follow the loss."""
    module = importlib.import_module(f"trainscope.core.detectors.{name}")
    detector: Any = {"changepoint": "ChangePointDetector", "z_score": "ZScoreDetector"}[name]
    detector = getattr(module, detector)()

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        score = detector.update(loss)
        return score is not None and score > 0  # a fall of the loss is a change too

    return rule


def _trainpulse() -> Rule:
    monitor: Any = importlib.import_module("trainpulse").Monitor()

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        alerts = [*monitor.log("loss", step, loss), *monitor.log("grad_norm", step, norm)]
        return any("plateau" not in str(getattr(alert, "message", alert)).lower() for alert in alerts)

    return rule


def _stabilityguard() -> Rule:
    detector: Any = importlib.import_module("stabilityguard.core.spike_detector").SpikeDetector()

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        broken = {name for name, value in norms.items() if not math.isfinite(value)}
        return bool(detector.check(dict(norms), broken)[0])

    return rule


RIVALS: dict[str, Callable[[], Rule]] = {
    "trainscope, CUSUM": lambda: _trainscope("changepoint"),
    "trainscope, z-score": lambda: _trainscope("z_score"),
    "trainpulse": _trainpulse,
    "stabilityguard": _stabilityguard,
}


class Rivals:
    """Feeds every step to the tools that are installed.

    Attributes:
        alarms: tool -> steps with an alarm; ``None`` if the tool is not installed.
    """

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}
        self.alarms: dict[str, list[int] | None] = {}
        for name, make in RIVALS.items():
            try:
                self._rules[name], self.alarms[name] = make(), []
            except ImportError:
                self.alarms[name] = None

    def step(self, step: int, loss: float, norm: float, norms: Mapping[str, float]) -> None:
        """One step of the run."""
        for name, rule in self._rules.items():
            if rule(step, loss, norm, norms):
                found = self.alarms[name]
                assert found is not None
                found.append(step)
