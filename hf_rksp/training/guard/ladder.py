"""What is done about a failing step: the mildest rung first, each one so many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.config.guard import GuardConfig


class Ladder:
    """Chooses the rung of a failing step.

    The first failing step gets the mildest rung that is chosen and not used up. One that fails within ``config.cooldown`` steps
    after an action gets the next rung. Skipping is the exception: steps are skipped one after the other, until ``config.skips``
    are used.

    Attributes:
        used: rung -> how often it was taken.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.used = dict.fromkeys(config.chosen, 0)
        self._most = {"skip": config.skips, "cut": config.cuts, "kss": 1, "rollback": config.rollbacks}
        self._last: tuple[int, str] | None = None

    def take(self, step: int, possible: frozenset[str] | None = None) -> str | None:
        """The rung for a failing step, which counts as taken; ``None`` if there is none that can be taken.

        Args:
            step: of the optimizer.
            possible: rungs that can be taken now, such as "rollback" only if there is a healthy checkpoint; ``None`` for all.
        """
        acting = [rung for rung in self.used if rung != "warn"]
        if not acting:
            return "warn" if "warn" in self.used else None
        first = 0
        if self._last is not None and step - self._last[0] <= self.config.cooldown:
            first = acting.index(self._last[1]) + (self._last[1] != "skip")
        for rung in acting[first:] or acting[-1:]:
            if self.used[rung] < self._most.get(rung, 10**9) and (possible is None or rung in possible):
                self.used[rung] += 1
                self._last = step, rung
                return rung
        return None

    def drop(self, rung: str) -> None:
        """Do without a rung that this run cannot have."""
        self.used.pop(rung, None)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"used": dict(self.used), "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Rungs that are chosen now and were not before have not been used."""
        self.used |= {rung: int(number) for rung, number in state["used"].items() if rung in self.used}
        last = state["last"]
        self._last = (int(last[0]), str(last[1])) if last and last[1] in self.used else None
