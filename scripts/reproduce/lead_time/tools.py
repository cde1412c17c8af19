"""Tools that judge each step: the guard of this package, trainscope, trainpulse and stabilityguard.

Each is read at several multiples of its own threshold.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_rksp import GuardConfig
from hf_rksp.training.guard.judge import Judge

#: Step, loss, gradient norm of the whole model, and of each weight -> whether there is an alarm.
Rule = Callable[[int, float, float, Mapping[str, float]], bool]


#: Package of another tool -> how it is installed.
PACKAGES = {
    "trainscope": "trainscope==1.8.1",
    "trainpulse": "trainpulse==0.4.0",
    "stabilityguard": "stabilityguard==0.3.0",
}
#: Multiples of a tool's own threshold that are tried, a root of two apart: 1 is its default.
SCALES = tuple(2.0 ** (power / 2) for power in range(-4, 7))
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


def _guard(scale: float) -> Rule:
    """The rule of `DivergenceGuard` for loss and gradient norm; that of the update needs the weights."""
    config = GuardConfig()
    judge = Judge(replace(config, limit=scale * config.limit))

    def rule(step: int, loss: float, norm: float, norms: Mapping[str, float]) -> bool:
        return bool(judge.judge(loss, norm))

    return rule


GUARD = "hf_rksp, guard"
TOOLS: dict[str, Callable[[float], Rule]] = {
    GUARD: _guard,
    "trainscope, CUSUM": lambda scale: _trainscope("changepoint", scale),
    "trainscope, z-score": lambda scale: _trainscope("z_score", scale),
    "trainpulse": _trainpulse,
    "stabilityguard": _stabilityguard,
}


class Tools:
    """Feeds every step to the tools, at several multiples of their thresholds.

    Args:
        names: which of them.

    Attributes:
        alarms: tool -> multiple -> steps with an alarm, at most one of five.

    Raises:
        ImportError: a tool is not installed.
    """

    def __init__(self, names: Sequence[str] = tuple(TOOLS)) -> None:
        self._rules = {(name, key(scale)): TOOLS[name](scale) for name in names for scale in SCALES}
        self.alarms: dict[str, dict[str, list[int]]] = {name: {key(scale): [] for scale in SCALES} for name in names}

    def step(self, step: int, loss: float, norm: float, norms: Mapping[str, float]) -> None:
        """One step of the run."""
        for (name, scale), rule in self._rules.items():
            found = self.alarms[name][scale]
            if rule(step, loss, norm, norms) and (not found or step // _EVERY > found[-1] // _EVERY):
                found.append(step)


def key(scale: float) -> str:
    """How a row names a multiple."""
    return f"{scale:.3g}"
