"""The event in a loss curve: its largest rise, if that is more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

#: Step and value; ``None`` is a number that was not finite.
Series = list[tuple[int, float | None]]
#: A rise counts from this share of what the loss had come down, ...
_SHARE = 0.25
#: ... from this share of the value that it rose from, ...
_RELATIVE = 0.1
#: ... and from this many times the noise. The range of 10⁵ normal values is below 9 standard deviations.
_NOISES = 12
#: More values than this are needed to measure the noise.
_FEW = 12
#: The loss is at its level from before within this share of the rise and half of the thresholds above, or within the noise.
_LEVEL = 0.1


@dataclass(frozen=True)
class Rise:
    """Where a loss left its level and how far it rose.

    Attributes:
        low_step, low: smallest value before the rise.
        left_step: last step at that level, before the loss left it for the first time.
        times: how often it left that level.
        high_step, high: largest value after it. lowest: whether ``low`` is the smallest value of the whole run.
        back_step, back: first value at the old level again; ``None`` if it never came back.
        end_step, end: last finite value.
    """

    low_step: int
    low: float
    left_step: int
    times: int
    high_step: int
    high: float
    lowest: bool
    back_step: int | None
    back: float | None
    end_step: int
    end: float


def largest_rise(series: Series) -> Rise | None:
    """The largest rise from a value to a later one; ``None`` if it is small beside the fall before it, or beside the noise.

    The noise is taken before the rise: the median difference of neighbours, as standard deviation of independent normal values.
    """
    known = [(step, value) for step, value in series if value is not None]
    if len(known) < 3:
        return None
    values = [value for _, value in known]
    at, start, end = 0, 0, 0
    for place, value in enumerate(values):
        at = place if value < values[at] else at
        if value - values[at] > values[end] - values[start]:
            start, end = at, place
    low, high = values[start], values[end]
    rise, fall = high - low, max(values[: start + 1]) - low
    before = values[: start + 1] if start > _FEW else values
    noise = 1.05 * median(abs(second - first) for first, second in pairwise(before)) if len(before) > _FEW else 0.0
    least = max(_SHARE * fall, _RELATIVE * abs(low), _NOISES * noise)
    if rise <= 0 or rise < least:
        return None
    level = low + min(rise / 2, max(min(_LEVEL * rise, least / 2), _NOISES * noise))
    above = [value > level for value in values]
    leaving = [place for place in range(start, len(values) - 1) if above[place + 1] and not above[place]]
    back = next((place for place in range(end, len(values)) if values[place] <= level), None)
    return Rise(
        known[start][0],
        low,
        known[leaving[0]][0],
        len(leaving),
        known[end][0],
        high,
        low == min(values),
        None if back is None else known[back][0],
        None if back is None else values[back],
        *known[-1],
    )
