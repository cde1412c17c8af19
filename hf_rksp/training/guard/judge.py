"""Is a step of a run healthy? Its loss and its norms against fixed limits, and against the run's own past.

A loss falls, fast at first: its spread over a long window is that of the fall, and hides a rise. So a step is compared with the
median of the last few healthy steps, and that difference with the spread of such differences, which is the noise of the run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from hf_rksp.baseline import Baseline
from hf_rksp.config.guard import GuardConfig

#: Least scatter of a loss in its unit, and of log2 of a norm.
_LOSS_FLOOR, _NORM_FLOOR = 0.05, 0.1
_NAMES = ("loss", "gradient norm", "update norm")
#: Healthy steps whose median is the present level.
_LEVEL = 16


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step: a stable name, and a sentence."""

    rule: str
    text: str


class Judge:
    """Judges the steps of a run one after the other.

    A step whose values are not finite, or above the fixed limits, fails at once. The limits hold from the first step that lies
    below them: the loss of some tasks is always large. A step that deviates from the past of the run fails after
    ``config.patience`` such steps in a row. What fails does not enter the past. A run that has moved to another level and stays
    there is healthy again: see `Baseline`.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the past: after a roll-back the run is another one."""
        #: Differences from the level, and the last values, the oldest first.
        self._past = {name: self._baseline(name) for name in _NAMES}
        self._recent: dict[str, list[float]] = {name: [] for name in _NAMES}
        #: Steps in a row that deviated.
        self._flagged = dict.fromkeys(_NAMES, 0)
        #: What has been below its limit.
        self._below = dict.fromkeys(_NAMES, False)

    def _baseline(self, name: str) -> Baseline:
        floor = _LOSS_FLOOR if name == "loss" else _NORM_FLOOR
        return Baseline(1, floor, self.config.limit, self.config.window, dwell=self.config.patience)

    def judge(self, loss: float | None, norm: float | None, update: float | None = None) -> list[Finding]:
        """What is wrong with a step; nothing if it is healthy.

        Args:
            loss: of the step, before anything filters it; NaN and inf are what they are. ``None`` if it is not known.
            norm: of the gradient before clipping; ``None`` if it is not known.
            update: norm of the change of the weights; ``None`` if it is not known.
        """
        found = []
        limits = (self.config.loss, self.config.norm, math.inf)
        for name, value, most in zip(_NAMES, (loss, norm, update), limits, strict=True):
            if value is None:
                continue
            self._below[name] |= value <= most
            if not math.isfinite(value):
                found.append(Finding(f"{name} not finite", f"The {name} is {value}."))
            elif value > most and self._below[name]:
                found.append(Finding(f"{name} above its limit", f"The {name} is {value:.4g}, above {most:g}."))
            else:
                found += self._against_past(name, value)
        return found

    def _against_past(self, name: str, value: float) -> list[Finding]:
        height = value if name == "loss" else math.log2(value) if value > 0 else math.nan
        recent = self._recent[name]
        if not math.isfinite(height) or len(recent) < _LEVEL:
            self._recent[name] = [*recent, height] if math.isfinite(height) else recent
            return []
        judged = self._past[name].judge(numpy.array([height - statistics.median(recent)]))
        deviation = float(judged.deviation[0])
        if judged.shifted:
            self._past[name], self._recent[name], deviation = self._baseline(name), [], 0.0
        elif not deviation > self.config.limit:
            self._recent[name] = [*recent[1:], height]
        self._flagged[name] = self._flagged[name] + 1 if deviation > self.config.limit else 0
        if self._flagged[name] < self.config.patience:
            return []
        text = f"The {name} is {value:.4g}, {deviation:.0f} times the noise of this run above its level"
        rows = f"; so it was in {self._flagged[name]} steps in a row" if self._flagged[name] > 1 else ""
        return [Finding(f"{name} leaves its past", f"{text}{rows}.")]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        past = {name: past.state_dict() for name, past in self._past.items()}
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"past": past, "recent": recent, "flagged": dict(self._flagged), "below": dict(self._below)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another window.
        """
        for name, past in self._past.items():
            past.load_state_dict(state["past"][name])
            self._recent[name] = [float(value) for value in state["recent"][name]]
            self._flagged[name] = int(state["flagged"][name])
            self._below[name] = bool(state["below"][name])
