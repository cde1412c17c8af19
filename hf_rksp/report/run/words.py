"""A history in words: what happened, and what to know before more is read into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy

from hf_rksp.history.schema import Row
from hf_rksp.json_data import section
from hf_rksp.quantities import Quantity
from hf_rksp.report.kit.text import DASH, count, form_of, large, line, number
from hf_rksp.report.run.events import Event, events_of
from hf_rksp.report.run.numbers import Run, described, heading
from hf_rksp.report.run.readings import LEFT_OUT
from hf_rksp.report.run.series import Series
from hf_rksp.report.run.tables import tokens

#: Values of a monitor that the words name.
_MOST = 6
#: A gradient norm above this many times the median is compared with it.
_PEAK = 3


def title(runs: Sequence[Run]) -> str:
    """The model's name, if it has one."""
    models = [section(run.history.run, "model") for run in runs]
    return _common(line(model.get("name") or model.get("class") or "", 120) for model in models) or "unnamed model"


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The line under the title."""
    models = [section(run.history.run, "model") for run in runs]
    spans = [span for run in runs if (span := run.span)]
    layers = len({name for run in runs for name in run.layers})
    found = [
        ("class", _common(line(model.get("class") or "", 80) for model in models)),
        ("parameters", _common(large(model.get("parameters")) for model in models)),
        ("layers", count(layers) if layers else ""),
        ("steps", f"{count(min(low for low, _ in spans))} to {count(max(high for _, high in spans))}" if spans else ""),
        ("readings", " + ".join(count(len(run.history.readings)) for run in runs)),
        ("events", " + ".join(count(len(run.events)) for run in runs) if any(run.events for run in runs) else ""),
    ]
    return [(name, value) for name, value in found if value and value != DASH]


def _common(values: Iterable[str]) -> str:
    return " and ".join(value for value in dict.fromkeys(values) if value)


def story(run: Run) -> list[str]:
    """What happened, one thing per sentence, and no judgement. If the run was stopped, that comes first."""
    nothing = [] if run.history.readings else ["Nothing was measured besides the log."]
    stopped = [event.text for event in events_of(run) if _is_stop(event)]
    return [*stopped, *_loss(run), *_gradient(run), *_events(run), *nothing, *_left_out(run)]


def _is_stop(event: Event) -> bool:
    return event.by == "run" and event.what == "stopped" and not event.gone and bool(event.text)


def measured(run: Run, monitor: str) -> list[str]:
    """How often a monitor has measured, and its numbers at the first and at the last reading."""
    return [*_measured(run, monitor), *_ended(run, monitor)] if monitor in run.monitors else []


def _loss(run: Run) -> list[str]:
    series = run.logged("loss")
    known = series.known()
    if not series:
        return ["No loss was logged."]
    if not known:
        return [f"The loss is not a finite number at any of {count(len(series))} logged steps."]
    (first, start), (last, end) = next(iter(known)), known.last
    if len(known) == 1:
        ends = f"The one finite loss is {number(start)}, at step {count(first)}."
    else:
        ends = f"Loss {number(start)} at step {count(first)}, {number(end)} at step {count(last)}."
    return [ends, *_rise(run), *_lost("The loss", series)]


def _rise(run: Run) -> list[str]:
    rise = run.rise
    if rise is None:
        return []
    low, high = number(rise.low), f"{number(rise.high)} at step {count(rise.high_step)}"
    level = "minimum" if rise.lowest else "level"
    text = f"The loss left its {level} of {low} at step {count(rise.low_step)} and rose to {high}."
    if rise.times > 1:
        text = f"The loss rose above its {level} of {low} on {count(rise.times)} occasions, the first after step "
        text += f"{count(rise.left_step)}, the largest to {high}."
    elif rise.left_step > rise.low_step:
        text = f"The loss was at its {level} of {low} at step {count(rise.low_step)}, stayed near it until step "
        text += f"{count(rise.left_step)} and then rose to {high}."
    if rise.back is not None and rise.back_step is not None:
        return [text, f"It was back at {number(rise.back)} at step {count(rise.back_step)}."]
    if rise.end_step == rise.high_step:
        return [text]
    return [text, f"It did not come back: {number(rise.end)} at step {count(rise.end_step)}."]


def _lost(what: str, series: Series) -> list[str]:
    found = series.gaps()
    if not found:
        return []
    start, missing = count(found[0][0]), len(series) - len(series.known())
    if len(found) == 1 and series.last[1] is None and missing > 1:
        return [f"{what} is not a finite number from step {start} to the end, step {count(series.last[0])}."]
    where = f"first at step {start}" if missing > 1 else f"step {start}"
    return [f"{what} is not a finite number at {count(missing)} of {count(len(series))} logged steps, {where}."]


def _gradient(run: Run) -> list[str]:
    series = run.logged("grad_norm")
    found = series.highest()
    if not found:
        return []
    usual = float(numpy.median(series.known().values))
    times = f", {number(found.value / usual)} times the median" if 0 < usual * _PEAK < found.value else ""
    return [
        f"Largest gradient norm {number(found.value)}, at step {count(found.where)}{times}.",
        *_lost("The gradient norm", series),
    ]


def _events(run: Run) -> list[str]:
    """Each kind of event once: how often, when first, and in the words of the first."""
    kinds: dict[tuple[str, str], list[Event]] = {}
    for event in [one for one in events_of(run) if not _is_stop(one)]:
        kinds.setdefault((event.by, event.what), []).append(event)
    sentences = []
    for (by, what), events in kinds.items():
        first, label = events[0], f"{heading(what)} ({by})" if by != "run" else heading(what)
        where = f" in {first.layer}" if first.layer else ""
        quoted = f": {first.text}" if first.text else "."
        if len(events) == 1:
            sentences.append(f"{label} at step {count(first.step)}{where}{quoted}")
        else:
            sentences.append(f"{label}, {count(len(events))} times, first at step {count(first.step)}{where}{quoted}")
    if run.history.abandoned:
        rows = len(run.history.abandoned)
        sentences.append(
            f"{count(rows)} rows belong to attempts that the run went back from; the charts show them pale."
        )
    return sentences


def _measured(run: Run, monitor: str) -> list[str]:
    readings, values = run.history.of(monitor), []
    for name in run.monitors[monitor][:_MOST]:
        key = f"{monitor}/{name}"
        quantity = described([run], key) or Quantity(key, key)
        known = run.measured(monitor, name).known()
        form, first_value, last_value = form_of(quantity), next(iter(known))[1], known.last[1]
        ends = form(first_value) if len(known) == 1 else f"{form(first_value)} → {form(last_value)}"
        values.append(f"{quantity.title} {ends}")
    label, text = heading(monitor), "; ".join(values)
    first, last = readings[0]["step"], readings[-1]["step"]
    when = (
        f"once, at step {count(first)}"
        if len(readings) == 1
        else f"{count(len(readings))} times, step {count(first)} to {count(last)}"
    )
    sentences = [f"{label} was measured {when}: {text}." if values else f"{label} was measured {when}."]
    layered = run.layered(monitor)
    short = layered.steps[layered.counts < len(layered.names)]
    if len(short):
        sentences.append(
            f"In {count(len(short))} of {count(len(readings))} readings a layer is missing, first at step {count(int(short[0]))}."
        )
    return sentences


def _ended(run: Run, monitor: str) -> list[str]:
    """Readings can end before the run does: states that are not finite have no spectrum."""
    steps = run.layered(monitor).steps
    if len(steps) < 2 or not run.history.logs:
        return []
    last, end = int(steps[-1]), run.history.logs[-1]["step"]
    if end <= last + numpy.median(numpy.diff(steps)):
        return []
    return [f"The last reading is at step {count(last)}; training continued to step {count(end)}."]


def _left_out(run: Run) -> list[str]:
    """What the log counts of what could not be read."""
    sentences = []
    for key in run.log_keys:
        part, _, name = key.rpartition("/")
        above = [(step, value) for step, value in run.logged(key) if value] if name in LEFT_OUT else []
        if above:
            quantity = described([run], key)
            what = (
                f"{quantity.title}: {count(above[-1][1])}"
                if quantity
                else f"{heading(part)} {name} {count(above[-1][1])} times"
            )
            sentences.append(
                f"{what[:1].upper()}{what[1:]} ({line(key, 60)}), first counted at step {count(above[0][0])}."
            )
    return sentences


def cautions(runs: Sequence[Run]) -> list[str]:
    """What must be known so that the curves are not read for more than they say."""
    readings: list[Row] = [row for run in runs for row in run.history.readings]
    kinds = {str(row["data"]) for row in readings if "data" in row}
    sentences = [
        "These are single runs without error bars: a difference between two of them can be chance."
        if len(runs) > 1
        else "This is a single run without error bars: with another seed it can look different."
    ]
    if "batch" in kinds:
        sentences.append(
            "A reading of the training batch sees other tokens at every step, with dropout on: part of what changes is the "
            "choice of tokens."
        )
    if len(kinds) > 1:
        sentences.append("Some readings are of the training batch and some of a fixed probe: these are not comparable.")
    if len({tokens(run.history).partition(", ")[0] for run in runs if run.history.spectra}) > 1:
        sentences.append("The runs measured different numbers of tokens; with fewer tokens the spectrum is wider.")
    sentences.append(
        "Each logged loss is the mean since the previous log line. Trainer silently leaves out NaN and inf losses unless "
        "logging_nan_inf_filter is off; the gradient norm then shows them first."
    )
    apart = sorted({key for run in runs for key in run.log_keys if key.endswith("/task_loss") and _differs(run, key)})
    sentences += [
        f"The logged loss contains an added term: compare {line(key, 60)}, the loss without it." for key in apart
    ]
    return sentences


def _differs(run: Run, key: str) -> bool:
    loss, other = run.logged("loss"), run.logged(key).known()
    there = numpy.searchsorted(loss.steps, other.steps).clip(max=max(len(loss) - 1, 0))
    same = (loss.steps[there] == other.steps) & (loss.values[there] == other.values) if loss else numpy.False_
    return bool(other) and not bool(numpy.all(same))
