"""What is done about a failing step: the mildest action first, each one so many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.config.guard import GuardConfig


class Ladder:
    """Chooses the action of a failing step.

    The first failing step gets the mildest action that is chosen and not used up. One that fails within ``config.cooldown`` steps
    after an action gets the next action. Skipping is the exception: steps are skipped one after the other, until ``config.skips``
    are used.

    Attributes:
        used: action -> how often it was taken.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.used = dict.fromkeys(config.chosen, 0)
        self._most = {"skip": config.skips, "cut": config.cuts, "kss": 1, "rollback": config.rollbacks}
        self._last: tuple[int, str] | None = None

    def take(self, step: int, possible: frozenset[str] | None = None) -> str | None:
        """The action for a failing step, which counts as taken; ``None`` if there is none that can be taken.

        Args:
            step: of the optimizer.
            possible: actions that can be taken now, such as "rollback" only if there is a healthy checkpoint; ``None`` for all.
        """
        acting = [action for action in self.used if action != "warn"]
        if not acting:
            return "warn" if "warn" in self.used else None
        first = 0
        if self._last is not None and step - self._last[0] <= self.config.cooldown:
            first = acting.index(self._last[1]) + (self._last[1] != "skip")
        for action in acting[first:] or acting[-1:]:
            if self.used[action] < self._most.get(action, 10**9) and (possible is None or action in possible):
                self.used[action] += 1
                self._last = step, action
                return action
        return None

    def drop(self, action: str) -> None:
        """Do without an action that this run cannot have."""
        self.used.pop(action, None)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"used": dict(self.used), "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Actions that are chosen now and were not before have not been used."""
        self.used |= {action: int(number) for action, number in state["used"].items() if action in self.used}
        last = state["last"]
        self._last = (int(last[0]), str(last[1])) if last and last[1] in self.used else None
