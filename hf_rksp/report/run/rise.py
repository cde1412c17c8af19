"""The event in a loss curve: its largest rise, if that is more than noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from hf_rksp.report.run.series import Series

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
    known = series.known()
    if len(known) < 3:
        return None
    steps, values = known.steps, known.values
    lowest = numpy.minimum.accumulate(values)
    end = int(numpy.argmax(values - lowest))
    start = int(numpy.argmax(values == lowest[end]))
    low, high = float(values[start]), float(values[end])
    rise, fall = high - low, float(values[: start + 1].max()) - low
    before = values[: start + 1] if start > _FEW else values
    noise = 1.05 * float(numpy.median(abs(numpy.diff(before)))) if len(before) > _FEW else 0.0
    least = max(_SHARE * fall, _RELATIVE * abs(low), _NOISES * noise)
    if rise <= 0 or rise < least:
        return None
    level = low + min(rise / 2, max(min(_LEVEL * rise, least / 2), _NOISES * noise))
    above = values > level
    leaving = start + numpy.flatnonzero(above[start + 1 :] & ~above[start:-1])
    back = end + numpy.flatnonzero(~above[end:])[:1]
    return Rise(
        int(steps[start]),
        low,
        int(steps[leaving[0]]),
        len(leaving),
        int(steps[end]),
        high,
        bool(low == values.min()),
        int(steps[back[0]]) if len(back) else None,
        float(values[back[0]]) if len(back) else None,
        int(steps[-1]),
        float(values[-1]),
    )
