"""Is a step of a run healthy? Its loss and its gradient norm against fixed limits, and against the run's own past."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from hf_rksp.baseline import Baseline
from hf_rksp.config.guard import GuardConfig

#: Least scatter of a loss in its unit, and of log2 of a gradient norm.
_LOSS_FLOOR, _NORM_FLOOR = 0.05, 0.1


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step: a stable name, and a sentence."""

    rule: str
    text: str


class Judge:
    """Judges the steps of a run one after the other.

    A step whose values are not finite, or above the fixed limits, fails at once. A step that deviates from the past of the run
    fails after ``config.patience`` such steps in a row. Neither enters the past. A run that has moved to another level and stays
    there is healthy again: see `Baseline`.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the past: after a roll-back the run is another one."""
        given = {"limit": self.config.limit, "window": self.config.window, "dwell": self.config.patience}
        self._past = {
            "loss": Baseline(1, _LOSS_FLOOR, **given),  # type: ignore[arg-type]
            "gradient norm": Baseline(1, _NORM_FLOOR, **given),  # type: ignore[arg-type]
        }
        #: Steps in a row that deviated.
        self._flagged = {"loss": 0, "gradient norm": 0}

    def judge(self, loss: float | None, norm: float | None) -> list[Finding]:
        """What is wrong with a step; nothing if it is healthy.

        Args:
            loss: of the step, before anything filters it; NaN and inf are what they are. ``None`` if it is not known.
            norm: of the gradient before clipping; ``None`` if it is not known.
        """
        found = []
        numbers = {"loss": (loss, self.config.loss), "gradient norm": (norm, self.config.norm)}
        for name, (value, most) in numbers.items():
            if value is None:
                continue
            if not math.isfinite(value):
                found.append(Finding(f"{name} not finite", f"The {name} is {value}."))
            elif value > most:
                found.append(Finding(f"{name} above its limit", f"The {name} is {value:.4g}, above {most:g}."))
            else:
                found += self._against_past(name, value)
        return found

    def _against_past(self, name: str, value: float) -> list[Finding]:
        level = value if name == "loss" else math.log2(value) if value > 0 else math.nan
        deviation = float(self._past[name].judge(numpy.array([level])).deviation[0])
        self._flagged[name] = self._flagged[name] + 1 if deviation > self.config.limit else 0
        if self._flagged[name] < self.config.patience:
            return []
        text = (
            f"The {name} is {value:.4g}, {deviation:.0f} times the scatter of this run above its level; so it was in "
        )
        text += f"{self._flagged[name]} steps in a row."
        return [Finding(f"{name} leaves its past", text)]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"past": {name: past.state_dict() for name, past in self._past.items()}, "flagged": dict(self._flagged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another window.
        """
        for name, past in self._past.items():
            past.load_state_dict(state["past"][name])
            self._flagged[name] = int(state["flagged"][name])
