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
#: An update is as large as the learning rate makes it.
_SAID = {"update norm": "update norm per learning rate"}
#: Healthy steps whose median is the present level.
_LEVEL = 16
#: A fixed limit holds for a run whose level is below this share of it.
_WELL_BELOW = 0.5
#: Deviating steps in a row after which a run that is steady at another level is healthy again.
SHIFT = 32


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step.

    Attributes:
        rule: a stable name.
        text: a sentence.
        waits: whether the run may have moved to another level, and is healthy if it stays there: a deviation of fewer than
            `SHIFT` steps from the run's own past.
    """

    rule: str
    text: str
    waits: bool = False


class Judge:
    """Judges the steps of a run one after the other.

    A step whose values are not finite, or above the fixed limits, fails at once. A limit holds while the level of the run is below
    half of it: the loss of some tasks is always large. A step that deviates from the past of the run fails after
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

    def _baseline(self, name: str) -> Baseline:
        floor = _LOSS_FLOOR if name == "loss" else _NORM_FLOOR
        return Baseline(1, floor, self.config.limit, self.config.window, dwell=self.config.patience, shift=SHIFT)

    def judge(self, loss: float | None, norm: float | None, update: float | None = None) -> list[Finding]:
        """What is wrong with a step; nothing if it is healthy.

        Args:
            loss: of the step, before anything filters it; NaN and inf are what they are. ``None`` if it is not known.
            norm: of the gradient before clipping; ``None`` if it is not known.
            update: norm of the change of the weights per learning rate; ``None`` if it is not known.
        """
        found = []
        limits = (self.config.loss, self.config.norm, math.inf)
        for name, value, most in zip(_NAMES, (loss, norm, update), limits, strict=True):
            if value is None:
                continue
            if not math.isfinite(value):
                found.append(Finding(f"{name} not finite", f"The {_SAID.get(name, name)} is {value}."))
            elif value > most and self._level_of(name) < _WELL_BELOW * most:
                found.append(Finding(f"{name} above its limit", f"The {name} is {value:.4g}, above {most:g}."))
            else:
                found += self._against_past(name, value)
        return found

    def _level_of(self, name: str) -> float:
        """Median of the last healthy values; infinite before the first one."""
        recent = self._recent[name]
        if not recent:
            return math.inf
        level = statistics.median(recent)
        return level if name == "loss" else 2.0**level

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
        said = _SAID.get(name, name)
        text = f"The {said} is {value:.4g}, {deviation:.0f} times the noise of this run above its level"
        rows = f"; so it was in {self._flagged[name]} steps in a row" if self._flagged[name] > 1 else ""
        return [Finding(f"{name} leaves its past", f"{text}{rows}.", self._flagged[name] < SHIFT)]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        past = {name: past.state_dict() for name, past in self._past.items()}
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"past": past, "recent": recent, "flagged": dict(self._flagged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another window.
        """
        for name, past in self._past.items():
            past.load_state_dict(state["past"][name])
            self._recent[name] = [float(value) for value in state["recent"][name]]
            self._flagged[name] = int(state["flagged"][name])
