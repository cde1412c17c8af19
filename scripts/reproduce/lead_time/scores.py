"""From signals to alarms: a score per reading, a threshold for a share of false alarms, and the step of the first alarm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Values = Sequence[float | None]
#: Readings of the grid (5 steps each) that have to lie above the threshold for an alarm: all of them that a signal has there.
#: Readings of the past that a change is measured against, and the last ones of them that do not count yet.
DWELL, PAST, GAP = 3, 40, 4
#: Scatter that counts at least, relative to the level.
_FLOOR = 0.02
FORMS = ("level", "change")


def change(values: Values) -> list[float]:
    """Deviation of each reading from the median of the run's own past, in units of the scatter there; minus infinity if unknown.

    At least 8 readings of a past are needed.
    """
    found = []
    for place, value in enumerate(values):
        past = [one for one in values[max(0, place - PAST) : max(0, place - GAP)] if one is not None]
        if value is None or len(past) < 8:
            found.append(-math.inf)
            continue
        middle = statistics.median(past)
        scatter = 1.4826 * statistics.median(abs(one - middle) for one in past)
        found.append((value - middle) / max(scatter, _FLOOR * abs(middle), 1e-12))
    return found


def scores(forms: Mapping[str, Values], form: str) -> list[float]:
    """A score per reading; minus infinity where nothing is known.

    Args:
        forms: of a signal, from `signals.series`.
        form: "level" is the signal itself; "change" is its deviation from the run's own past. If each layer has the signal, that is
            the largest deviation of a layer.
    """
    if form == "change" and form not in forms:
        return change(forms["level"])
    return [-math.inf if value is None else value for value in forms[form]]


def runs_of(scored: Sequence[float]) -> list[float]:
    """For each reading the least score of the last `DWELL` places of the grid: an alarm is there if it is above the threshold.

    A signal that is read at every other place has two readings there; minus infinity until there are two.
    """
    found = []
    for place, score in enumerate(scored):
        known = [one for one in scored[max(0, place - DWELL + 1) : place + 1] if one > -math.inf]
        found.append(min(known) if score > -math.inf and len(known) > 1 else -math.inf)
    return found


def threshold(healthy: Sequence[Sequence[float]], share: float) -> float:
    """The least threshold above which at most ``share`` of the healthy runs have an alarm.

    Args:
        healthy: `runs_of` of each; infinite if nothing is known of any.
    """
    highest = sorted((top for run in healthy if (top := max(run, default=-math.inf)) > -math.inf), reverse=True)
    return highest[int(share * len(highest))] if highest else math.inf


def all_alarms(run: Sequence[float], above: float, every: int) -> list[int]:
    """The steps of the readings with an alarm."""
    return [place * every for place, score in enumerate(run) if score > above]
