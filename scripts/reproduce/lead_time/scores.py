"""From signals to alarms: a score per reading, a threshold for a share of false alarms, and the steps with an alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Readings of the grid (5 steps each) that have to lie above the threshold for an alarm: all of them that a signal has there.
#: Readings of the past that a change is measured against, and the last ones of them that do not count yet.
DWELL, PAST, GAP = 3, 40, 4
#: Readings of the past that are needed.
_LEAST = 8
#: Scatter that counts at least, relative to the level.
_FLOOR = 0.02
FORMS = ("level", "change")


def change(values: Array, floor: float = 0.0) -> Array:
    """Deviation of each reading from the median of the run's own past, in units of the scatter there; NaN if unknown.

    At least 8 readings of a past are needed. The scatter is 1.4826 times the median absolute deviation.

    Args:
        values: shape ``(layers, readings)``, NaN for none.
        floor: scatter that counts at least; 2% of the median does too.
    """
    padded = np.pad(values, ((0, 0), (PAST, 0)), constant_values=np.nan)
    past = np.lib.stride_tricks.sliding_window_view(padded, PAST - GAP, axis=1)[:, : values.shape[1]]
    middle = _median(past)
    scatter = 1.4826 * _median(np.abs(past - middle[..., None]))
    found = (values - middle) / np.maximum.reduce(
        [scatter, _FLOOR * np.abs(middle), np.full_like(scatter, max(floor, 1e-12))]
    )
    return np.where((~np.isnan(past)).sum(-1) >= _LEAST, found, np.nan)


def _median(values: Array) -> Array:
    """Over the last axis, without NaN; NaN if there is nothing else. `numpy.nanmedian` takes twenty times as long."""
    ordered, count = np.sort(values, axis=-1), (~np.isnan(values)).sum(-1)
    low, high = (
        np.take_along_axis(ordered, place[..., None], -1)[..., 0]
        for place in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    return np.where(count > 0, 0.5 * (low + np.where(count % 2, low, high)), np.nan)


def lasting(scores: Array) -> Array:
    """For each reading the least score of the last `DWELL` places of the grid: an alarm is there if it is above the threshold.

    A signal that is read at every other place has two readings there; minus infinity until there are two.

    Args:
        scores: shape ``(readings,)``, NaN for none.
    """
    found = np.full(len(scores), -np.inf)
    for place, score in enumerate(scores):
        known = [one for one in scores[max(0, place - DWELL + 1) : place + 1] if not math.isnan(one)]
        if not math.isnan(score) and len(known) > 1:
            found[place] = min(known)
    return found


def threshold(healthy: Sequence[Array], share: float) -> float:
    """The threshold that a new healthy run has an alarm above with a probability of at most ``share``.

    The run is as likely to rank anywhere among the others: of n runs the k-th highest is exceeded with probability k / (n + 1).

    Args:
        healthy: `lasting` of each; infinite if there are too few of them.
    """
    highest = sorted((float(run.max(initial=-np.inf)) for run in healthy), reverse=True)
    place = int(share * (len(highest) + 1)) - 1
    return highest[place] if place >= 0 and highest[place] > -math.inf else math.inf


def alarms_above(run: Array, above: float, every: int) -> list[int]:
    """The steps of the readings with an alarm."""
    return [place * every for place in np.flatnonzero(run > above).tolist()]
