"""Signs of failure in what a run has logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from hf_rksp.baseline import Baseline
from hf_rksp.doctor.state import LoggedRun
from hf_rksp.report.kit.text import count, number
from hf_rksp.report.run.rise import largest_rise
from hf_rksp.report.run.series import Series

#: Loss and gradient norm above which a run is lost (arXiv:2602.22988, appendix).
MOST_LOSS, MOST_NORM = 50.0, 500.0
#: Scatter of log2 of a gradient norm that counts at least, and how many of it a value lies above the past of the run to be a sign.
_FLOOR, _LIMIT, _DWELL = 0.1, 8.0, 2
#: Gradient norms in a row that are not finite, from which the run is taken to be broken: a scaler of float16 skips single steps.
_LASTING = 3
#: A loss that ends at more than so many times its first value has not learnt; fewer values say nothing.
_WORSE, _FEW = 1.05, 5


@dataclass(frozen=True)
class Sign:
    """Something that a healthy run does not do.

    Attributes:
        step: of the log row; ``None`` if it has none.
        what: a stable name.
        text: a sentence.
        breaks: whether the run is of no use from there on, unless it came back.
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
    found = [
        *_not_finite("loss", "The loss", loss, breaks=True),
        *_hidden(loss, norm),
        *_not_finite("eval_loss", "The evaluation loss", run.of("eval_loss"), breaks=False),
        *_zero(loss),
        *_above("loss above 50", "The loss", loss, MOST_LOSS),
        *_above("gradient norm above 500", "The gradient norm", norm, MOST_NORM),
        *(_rise(loss) or _never_lower(loss)),
        *_unusual(norm),
    ]
    return in_order(found)


def in_order(signs: Sequence[Sign]) -> list[Sign]:
    """By step; signs without one at the end."""
    return sorted(signs, key=lambda sign: (sign.step is None, sign.step or 0))


def signs_in(events: Sequence[dict[str, Any]]) -> list[Sign]:
    """The alarms among the events of a history, the first of each kind."""
    found: dict[tuple[str, str], Sign] = {}
    for row in events:
        if row.get("what") == "alarm":
            key = str(row.get("by", "")), str(row.get("rule", ""))
            found.setdefault(key, Sign(row["step"], f"alarm: {key[1]}", str(row.get("text") or "Alarm."), by=key[0]))
    return list(found.values())


def _not_finite(what: str, name: str, series: Series, breaks: bool) -> list[Sign]:
    gaps = series.gaps()
    if not gaps:
        return []
    first, last = gaps[0][0], gaps[-1]
    to_end = last[1] == series.last[0]
    missing = len(series) - len(series.known())
    rest = (
        " to the end"
        if to_end and len(gaps) == 1 and missing > 1
        else f" ({count(missing)} of {count(len(series))} log lines)"
    )
    return [Sign(first, f"{what} not finite", f"{name} is not a finite number from step {count(first)}{rest}.", breaks)]


def _hidden(loss: Series, norm: Series) -> list[Sign]:
    """The gradient is not finite. Trainer leaves out losses that are not, so the loss of the same line may look healthy."""
    gaps = norm.gaps()
    if not gaps:
        return []
    steps = norm.steps[numpy.isnan(norm.values)]
    longest = max(int(((steps >= first) & (steps <= last)).sum()) for first, last in gaps)
    lasting = longest >= _LASTING or norm.last[1] is None
    first = gaps[0][0]
    text = f"The gradient norm is not a finite number at {count(len(steps))} of {count(len(norm))} log lines, first at step "
    text += f"{count(first)}."
    if (value := dict(loss).get(first)) is not None:
        text += f" The loss of that line is {number(value)}: Trainer leaves out what is not finite (logging_nan_inf_filter)."
    if not lasting:
        text += " With float16 the scaler skips such steps; single ones do no harm."
    return [Sign(first, "gradient norm not finite", text, lasting)]


def _zero(loss: Series) -> list[Sign]:
    """A loss of exactly zero: labels that are all masked, or NaN that was left out."""
    places = numpy.flatnonzero(loss.values == 0)
    if not len(places):
        return []
    first = int(loss.steps[places[0]])
    text = (
        f"The loss is exactly 0 at {count(len(places))} of {count(len(loss))} log lines, first at step {count(first)}."
    )
    return [
        Sign(first, "loss is 0", f"{text} No token had a label there, or every loss was NaN and was left out.", True)
    ]


def _above(what: str, name: str, series: Series, most: float) -> list[Sign]:
    places = numpy.flatnonzero(series.values > most)
    if not len(places):
        return []
    step, value = int(series.steps[places[0]]), float(series.values[places[0]])
    return [Sign(step, what, f"{name} is {number(value)} at step {count(step)}, above {most:g}.")]


def _rise(loss: Series) -> list[Sign]:
    rise = largest_rise(loss)
    if rise is None:
        return []
    text = f"The loss left its level of {number(rise.low)} after step {count(rise.left_step)} and rose to {number(rise.high)} at "
    text += f"step {count(rise.high_step)}."
    if rise.back_step is not None:
        return [Sign(rise.left_step, "spike", f"{text} It was back at step {count(rise.back_step)}.")]
    return [Sign(rise.left_step, "divergence", f"{text} It did not come back.", breaks=True)]


def _never_lower(loss: Series) -> list[Sign]:
    """A loss that ends above its beginning, however noisy it is."""
    known = loss.known()
    if len(known) < _FEW:
        return []
    steps, values = known.steps, known.values
    start, end = float(values[0]), float(numpy.median(values[-max(3, len(values) // 20) :]))
    if end <= _WORSE * start:
        return []
    left = int(numpy.flatnonzero(values <= start)[-1])
    since = count(int(steps[min(left + 1, len(steps) - 1)]))
    text = f"The loss has stayed above its first value of {number(start)} since step {since}; it ends at {number(end)}."
    return [Sign(int(steps[left]), "loss above its beginning", text, breaks=True)]


def _unusual(norm: Series) -> list[Sign]:
    """The first gradient norm that lies far above the past of this run, by the rule of the monitors."""
    baseline = Baseline(1, _FLOOR, _LIMIT, dwell=_DWELL)
    before = 0
    for step, value in norm:
        level = numpy.log2(value) if value and value > 0 else numpy.nan
        if baseline.judge(numpy.array([level])).began:
            text = f"The gradient norm is {number(value)} at step {count(step)}, and in {_DWELL} log lines in a row far above the "
            text += "past of this run."
            return [Sign(before, "gradient norm leaves its past", text)]
        before = step
    return []
