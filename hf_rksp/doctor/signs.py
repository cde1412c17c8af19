"""Signs of failure in what a run has logged.

A run is broken if what is wrong lasts to the end of its log: numbers that are not finite, or a loss far above its lowest level.
What came back by itself is an incident. Losses differ (they can be negative, noisy, or close to zero), so levels are medians, and
a difference counts in units of the noise of the run itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from hf_rksp.doctor.rows import LASTING, Rows
from hf_rksp.doctor.state import LoggedRun
from hf_rksp.report.kit.text import count, line, number
from hf_rksp.report.run.events import LONGEST
from hf_rksp.report.run.rise import largest_rise
from hf_rksp.report.run.series import Series

#: Loss and gradient norm above which a run is lost (arXiv:2602.22988), if it begins far below.
_MOST = {"loss": 50.0, "grad_norm": 500.0}
#: A loss at the end counts as risen from this share of what it had come down, of its lowest level, and from so many times its
#: noise.
_SHARE, _RELATIVE, _NOISES = 0.25, 0.1, 8.0
#: A loss that stays above so many times its first value to the end has risen, whatever the noise.
_TWICE = 2.0
#: Log lines below which the end is compared with the beginning alone: a level is not known.
_FEW = 20
#: A spike that came back is worth a word from this share of the level, and from so many times the noise.
_SPIKE, _SPIKE_NOISES = 0.5, 20.0
#: Log lines at the beginning whose norm and loss may be large.
_FIRST = 3
#: Log lines that are the past of a gradient norm at most and at least, least scatter of its log2, and how many of it count.
_WINDOW, _LEAST, _FLOOR, _LIMIT = 64, 8, 0.1, 8.0
#: Signs that come before a run breaks, and mean nothing else.
EARLY = ("gradient norm leaves its past",)


@dataclass(frozen=True)
class Sign:
    """Something that a healthy run does not do.

    Attributes:
        step: of the log line; ``None`` if it has none.
        what: a stable name.
        text: a sentence.
        breaks: whether the run is of no use from there on.
        by: "log", or the part that wrote the event.
    """

    step: int | None
    what: str
    text: str
    breaks: bool = False
    by: str = "log"


def signs_of(run: LoggedRun) -> list[Sign]:
    """All signs, by step."""
    loss, norm = run.of("loss"), run.of("grad_norm")
    norm = norm if norm.any() else Series()  # some trainers log none
    rows = Rows(loss, norm)
    breaking = [*_not_finite_at_the_end(rows), *_no_labels(rows), *_risen(rows)]
    found = [*breaking, *_recovered(rows), *_not_finite_evaluation(run.of("eval_loss")), *_above(loss, norm)]
    if breaking:
        found += _unusual(norm, min(sign.step for sign in breaking if sign.step is not None))
    else:
        found += _spike(loss)
    return in_order(found)


def in_order(signs: Sequence[Sign]) -> list[Sign]:
    """By step; signs without one at the end."""
    return sorted(signs, key=lambda sign: (sign.step is None, sign.step or 0))


def signs_in(events: Sequence[dict[str, Any]]) -> list[Sign]:
    """The alarms among the events of a history, the first of each kind, and that the guard has stopped the run.

    Those of steps that the run went back from are left out.
    """
    found: dict[tuple[str, str], Sign] = {}
    for place, row in enumerate(events):
        gone = any(isinstance(to := later.get("to"), int) and to < row["step"] for later in events[place + 1 :])
        if row.get("what") == "alarm" and not gone:
            by, rule = line(row.get("by") or "", 40), line(row.get("rule") or "", 60)
            text = line(row.get("text") or "Alarm.", LONGEST)
            found.setdefault((by, rule), Sign(row["step"], f"alarm: {rule}", text, by=by))
        if row.get("what") == "stopped" and not gone:
            text = line(row.get("text") or "The guard has stopped the run.", LONGEST)
            found["run", "stopped"] = Sign(row["step"], "stopped", text, breaks=True, by="run")
    return list(found.values())


def _not_finite_at_the_end(rows: Rows) -> list[Sign]:
    if rows.tail == len(rows.steps):
        return []
    step, lines = int(rows.steps[rows.tail]), len(rows.steps) - rows.tail
    shown = [value for value in rows.loss[rows.tail :] if not numpy.isnan(value)]
    text = f"From step {count(step)} to the end of the log ({count(lines)} {'line' if lines == 1 else 'lines'}) the loss or the "
    text += "gradient norm is not a finite number."
    if shown:
        text += f" The log shows a loss of {number(shown[-1])} there: Trainer leaves out what is not finite "
        text += "(logging_nan_inf_filter)."
    return [Sign(step, "not finite", text, breaks=True)]


def _no_labels(rows: Rows) -> list[Sign]:
    """Loss and gradient norm are exactly 0 to the end: no token has a label."""
    other = numpy.flatnonzero(~((rows.loss == 0) & rows.norm_zero))
    first = int(other[-1]) + 1 if len(other) else 0
    if len(rows.steps) - first < LASTING:
        return []
    step = int(rows.steps[first])
    text = f"Loss and gradient norm are exactly 0 from step {count(step)} to the end: no token has a label there."
    return [Sign(step, "nothing is learnt", text, breaks=True)]


def _risen(rows: Rows) -> list[Sign]:
    """The loss ends far above its lowest level, also if it was not finite afterwards."""
    known = numpy.flatnonzero(~rows.lost)
    steps, values = rows.steps[known], rows.loss[known]
    exploded = rows.tail < len(rows.steps)
    # A loss that can be negative has no level that counts.
    if len(values) < (2 if exploded else 3) or values.min() <= 0:
        return []
    width = _width(values)
    levels = _levels(values, width)
    end = float(values[-1] if exploded else numpy.median(values[-max(width, 3) :]))
    start, low = float(levels[0]), float(levels.min())
    least = max(_SHARE * (start - low), _RELATIVE * low, _NOISES * _noise(values, levels))
    if _stays_above(values):
        left = int(numpy.flatnonzero(values <= values[0])[-1])
        text = f"The loss stays above its first value of {number(float(values[0]))} after step {count(int(steps[left]))} and ends "
        return [Sign(int(steps[left]), "divergence", f"{text}at {number(end)}.", breaks=True)]
    if end - low <= least or (len(values) < _FEW and end <= (1 + _RELATIVE) * start):
        return []
    left = int(numpy.flatnonzero(levels <= low + min(least, (end - low) / 2))[-1])
    text = f"The loss left its level of {number(low)} after step {count(int(steps[left]))} and "
    text += f"was {number(end)} at step {count(int(steps[-1]))}." if exploded else f"ends at {number(end)}."
    return [Sign(int(steps[left]), "divergence", text, breaks=True)]


def _stays_above(values: numpy.ndarray) -> bool:
    """Whether nearly all values from some line on are far above the first one: then the noise is no measure."""
    since = int(numpy.flatnonzero(values <= values[0])[-1]) + 1
    lines = len(values) - since
    return lines >= max(3, len(values) // 5) and bool(numpy.median(values[since:]) > _TWICE * values[0])


def _width(values: numpy.ndarray) -> int:
    """Values that make up a level: a twentieth of them, but not so many that the medians of a long log take long."""
    return 1 if len(values) < _FEW else min(_WINDOW - 1, max(3, len(values) // 20 | 1))


def _levels(values: numpy.ndarray, width: int) -> numpy.ndarray:
    """Median of the ``width`` values around each."""
    if width == 1:
        return values
    found: numpy.ndarray = numpy.median(sliding_window_view(numpy.pad(values, width // 2, "edge"), width), axis=1)
    return found


def _noise(values: numpy.ndarray, levels: numpy.ndarray) -> float:
    """Standard deviation of normal noise with the median difference of neighbours, or that around the levels."""
    if len(values) < _FEW:
        return 0.0
    return max(1.05 * float(numpy.median(abs(numpy.diff(values)))), 1.48 * float(numpy.median(abs(values - levels))))


def _recovered(rows: Rows) -> list[Sign]:
    """Numbers that were not finite, in a run that went on."""
    loss, gradient = rows.lost[: rows.tail], rows.norm_broken[: rows.tail]
    if not (loss | gradient).any():
        return []
    name = "The loss" if loss.any() else "The gradient norm"
    places = numpy.flatnonzero(loss if loss.any() else gradient)
    step = int(rows.steps[places[0]])
    text = f"{name} is not a finite number at {count(len(places))} of {count(len(rows.steps))} log lines, first at "
    text += f"step {count(step)}; the run went on."
    if not loss.any():
        text += " With float16 the scaler skips such steps, and single ones do no harm."
    return [Sign(step, "not finite for a while", text)]


def _not_finite_evaluation(series: Series) -> list[Sign]:
    gaps = series.gaps()
    if not gaps:
        return []
    text = f"The evaluation loss is not a finite number at step {count(gaps[0][0])}."
    return [Sign(gaps[0][0], "evaluation loss not finite", text)]


def _above(loss: Series, norm: Series) -> list[Sign]:
    found = []
    for key, name, series in (("loss", "The loss", loss), ("grad_norm", "The gradient norm", norm)):
        known = series.known()
        if not known or numpy.median(known.values[:_WINDOW]) > _MOST[key] / 10:  # a sum of losses is large by itself
            continue
        places = numpy.flatnonzero(known.values > _MOST[key])
        places = places[places >= _FIRST]
        if len(places):
            step, value = int(known.steps[places[0]]), float(known.values[places[0]])
            text = f"{name} is {number(value)} at step {count(step)}, above {_MOST[key]:g}."
            found.append(Sign(step, f"{key} above {_MOST[key]:g}", text))
    return found


def _spike(loss: Series) -> list[Sign]:
    known = loss.known()
    rise = largest_rise(known)
    if rise is None or rise.back_step is None or len(known) < _FEW or known.values.min() <= 0:
        return []
    values, logs = known.values, numpy.log(known.values)
    # Noise can be a number, or a share of the loss.
    small = rise.high - rise.low < _SPIKE_NOISES * _noise(values, _levels(values, _width(values)))
    flat = math.log(rise.high / rise.low) < _SPIKE_NOISES * _noise(logs, _levels(logs, _width(logs)))
    if small or flat or rise.high < (1 + _SPIKE) * rise.low:
        return []
    text = f"The loss rose from {number(rise.low)} to {number(rise.high)} at step {count(rise.high_step)}. It was back at step "
    text += f"{count(rise.back_step)}."
    return [Sign(rise.left_step, "spike", text)]


def _unusual(norm: Series, broken_at: int) -> list[Sign]:
    """The gradient norm left its past shortly before the run broke: two log lines in a row far above the lines before."""
    known = norm.known()
    steps, values = known.steps, known.values
    before = (steps <= broken_at) & (values > 0)
    steps, levels = steps[before], numpy.log2(values[before])
    width = min(_WINDOW, len(levels) // 2)
    first = max(width, 3 * len(levels) // 4)
    if width < _LEAST or first >= len(levels) - 1:
        return []
    pasts = sliding_window_view(levels, width)[first - width : len(levels) - width]
    middle = numpy.median(pasts, axis=1)
    scatter = numpy.maximum(_FLOOR, 1.48 * numpy.median(abs(pasts - middle[:, None]), axis=1))
    above = levels[first:] > middle + _LIMIT * scatter
    places = first + numpy.flatnonzero(above[:-1] & above[1:])
    if not len(places):
        return []
    step, value = int(steps[places[0]]), number(float(2.0 ** levels[places[0]]))
    text = f"The gradient norm is {value} at step {count(step)}, far above its past, before the run broke."
    return [Sign(step, EARLY[0], text)]
