"""Alarms of a series: deviation of a number from the healthy past of this run.

No threshold is published for the alignment of a layer, and a healthy network may have any level. So each series is compared with
its own past: the median of a window, in units of its scatter. Several readings in a row are needed. Readings that deviate do
not enter the window; but a series that has moved to another level, and stays there, begins a new window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

#: Scatter of a normal distribution per median absolute deviation.
_PER_MAD = 1.4826


@dataclass(frozen=True)
class Judgement:
    """What is said of a reading of all series.

    Attributes:
        deviation: of each series from its window, in units of the scatter; NaN without a window.
        began: numbers of the series whose alarm begins with this reading.
        shifted: numbers of the series that are taken to have moved to another level.
    """

    deviation: numpy.ndarray
    began: tuple[int, ...]
    shifted: tuple[int, ...]


class Baseline:
    """The healthy past of several series that are read together.

    Args:
        series: how many.
        floor: scatter that a series has at least, in its own unit: what is smaller is no deviation.
        limit: deviation above which a reading is flagged.
        window: healthy readings that are kept of each series.
        least: readings from which a series is judged.
        dwell: flagged readings in a row from which an alarm begins; as many below half the limit end it.
        shift: flagged readings in a row after which a series that is steady at another level begins a new window.
    """

    def __init__(
        self,
        series: int,
        floor: float,
        limit: float = 8.0,
        window: int = 64,
        least: int = 16,
        dwell: int = 3,
        shift: int = 32,
    ) -> None:
        self.floor, self.limit, self.least, self.dwell, self.shift = floor, limit, least, dwell, shift
        self._past = numpy.full((series, window), numpy.nan)
        self._refused = numpy.full((series, shift), numpy.nan)
        self._flagged = numpy.zeros(series, int)
        self._calm = numpy.zeros(series, int)
        self._alarmed = numpy.zeros(series, bool)

    @property
    def alarmed(self) -> numpy.ndarray:
        """Which series are in alarm, shape ``(series,)``."""
        return self._alarmed.copy()

    def judge(self, values: numpy.ndarray) -> Judgement:
        """Judge a reading, and learn from what is healthy in it.

        Args:
            values: shape ``(series,)``; what is not finite is no reading of that series. A rise is a deviation, so pass what falls
                in an unhealthy run with the other sign.
        """
        there = numpy.isfinite(values)
        known = there & (numpy.isfinite(self._past).sum(1) >= self.least)
        middle, scatter = self._level(self._past, known)
        deviation = numpy.full(len(values), numpy.nan)
        deviation[known] = (values[known] - middle[known]) / scatter[known]
        above = known & (numpy.nan_to_num(deviation, nan=-numpy.inf) > self.limit)
        calm = known & (numpy.nan_to_num(deviation, nan=numpy.inf) < self.limit / 2)
        self._flagged = numpy.where(there, numpy.where(above, self._flagged + 1, 0), self._flagged)
        self._calm = numpy.where(calm, self._calm + 1, numpy.where(there, 0, self._calm))
        began = ~self._alarmed & (self._flagged >= self.dwell)
        self._alarmed = (self._alarmed | began) & ~(self._calm >= self.dwell)
        self._push(self._past, values, there & ~above)
        self._push(self._refused, values, above)
        self._refused[there & ~above] = numpy.nan
        shifted = self._steady()
        for place in shifted:
            self._past[place] = numpy.nan
            self._past[place, -self.shift :] = self._refused[place][-self._past.shape[1] :]
            self._refused[place] = numpy.nan
            self._flagged[place] = 0
        self._alarmed[shifted] = False
        return Judgement(deviation, tuple(map(int, numpy.flatnonzero(began))), tuple(map(int, shifted)))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: _plain(getattr(self, f"_{name}")) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another number of series, or of other settings.
        """
        for name in _STATE:
            mine = getattr(self, f"_{name}")
            kept = numpy.array([numpy.nan if value is None else value for value in state[name]], dtype=float)
            setattr(self, f"_{name}", kept.reshape(mine.shape).astype(mine.dtype))

    def _level(self, values: numpy.ndarray, which: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Median and scatter of rows; NaN for rows that are not asked for."""
        middle, scatter = numpy.full(len(values), numpy.nan), numpy.full(len(values), numpy.nan)
        rows = values[which]
        if len(rows):
            middle[which] = _medians(rows)
            spread = _medians(abs(rows - middle[which][:, None])) * _PER_MAD
            scatter[which] = numpy.maximum(spread, self.floor)
        return middle, scatter

    def _steady(self) -> numpy.ndarray:
        """Series whose readings were all flagged, and whose last half has the level of the half before, within their scatter."""
        full = numpy.isfinite(self._refused).all(1)
        _, scatter = self._level(self._refused, full)
        halves = [numpy.full(len(full), numpy.nan), numpy.full(len(full), numpy.nan)]
        for place, half in enumerate(numpy.array_split(self._refused, 2, axis=1)):
            halves[place][full] = _medians(half[full])
        return numpy.flatnonzero(full & (abs(halves[1] - halves[0]) <= scatter))

    @staticmethod
    def _push(held: numpy.ndarray, values: numpy.ndarray, which: numpy.ndarray) -> None:
        """The newest value last."""
        held[which] = numpy.concatenate([held[which, 1:], values[which, None]], axis=1)


def _medians(rows: numpy.ndarray) -> numpy.ndarray:
    """`numpy.nanmedian` of each row, which is slow for few short rows; NaN for a row without a number."""
    ordered, count = numpy.sort(rows, axis=1), numpy.isfinite(rows).sum(1)[:, None]  # NaN at the end
    low, high = (numpy.take_along_axis(ordered, place, 1)[:, 0] for place in ((count - 1) // 2, count // 2))
    middle: numpy.ndarray = (low + high) / 2
    return middle


_STATE = ("past", "refused", "flagged", "calm", "alarmed")


def _plain(values: numpy.ndarray) -> list[Any]:
    """Lists of numbers; ``None`` where there is none."""
    return [float(value) if numpy.isfinite(value) else None for value in values.ravel()]
