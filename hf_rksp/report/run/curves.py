"""A number over the steps of training as a chart, with a line per run."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from hf_rksp.quantities import Quantity
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, cross, dot, polyline, step_ticks, thinned, ticks, with_margin
from hf_rksp.report.kit.svg import Figure, Scale
from hf_rksp.report.kit.text import count, number
from hf_rksp.report.run.numbers import Run
from hf_rksp.report.run.series import Series

WIDTH, HEIGHT = 440, 236
PLOT = Plot(left=66, right=428, top=30, base=194, edge=WIDTH)
#: Points of a line that are drawn; beyond it, each column of the drawing keeps its ends and its extremes.
_MOST = 600
#: Values of a series up to which each gets a dot: of readings, and of logged numbers.
_DOTS, _FEW = 100, 12
#: Marks of missing numbers that a line gets at most.
_CROSSES = 12


@dataclass(frozen=True)
class Curve:
    """What one chart shows.

    Attributes:
        key: stable name of the figure.
        title, label, note: heading, what the axis shows, and what to know.
        series: one per run.
        abandoned: per run the series of attempts that it went back from; drawn pale.
        log: powers of ten.
        limit, limit_title: a value that the others are compared with.
        share: the axis reaches from 0 to 1.
        dots: the values are readings, few enough for a dot each.
    """

    key: str
    title: str
    label: str
    note: str
    series: list[Series]
    abandoned: list[list[Series]] = field(default_factory=list)
    log: bool = False
    limit: float | None = None
    limit_title: str = ""
    share: bool = False
    dots: bool = False

    @property
    def runs(self) -> list[int]:
        """The runs that are in it."""
        return [place for place, series in enumerate(self.series) if series]


def curve_of(
    quantity: Quantity, series: list[Series], abandoned: list[list[Series]], note: str = "", dots: bool = False
) -> Curve:
    """The chart of a quantity: its title, unit, limit and kind of axis; its note before ``note``."""
    title = quantity.title[:1].upper() + quantity.title[1:] if quantity.title != quantity.key else quantity.title
    log = quantity.logarithmic or (quantity.unit == "number" and spreads(series))
    unit = {"share": "share", "count": "count"}.get(quantity.unit, "")
    label = ", ".join(filter(None, (quantity.symbol, unit, "powers of ten" if log else "")))
    return Curve(
        slug(quantity.key),
        title,
        label,
        " ".join(filter(None, (quantity.note, note))),
        series,
        abandoned,
        log,
        quantity.limit,
        quantity.limit_title,
        quantity.unit == "share" and not log,
        dots,
    )


def slug(key: str) -> str:
    """A key as part of an identifier; other keys give other identifiers."""
    plain = re.sub("[^A-Za-z0-9_/]", "_", key)
    return plain.replace("/", "-") + (f"-{zlib.crc32(key.encode('utf-8', 'replace')):x}" if plain != key else "")


def spreads(series: Sequence[Series]) -> bool:
    """Whether the values span so much that a linear axis would show the largest alone."""
    values = _known(series)
    return len(values) > 0 and values.min() > 0 and values.max() > 20 * numpy.median(values)


def across(runs: Sequence[Run]) -> Scale:
    """The axis of steps that all charts of the page share."""
    spans = [span for run in runs if (span := run.span)]
    low, high = min((low for low, _ in spans), default=0), max((high for _, high in spans), default=1)
    return PLOT.x(low, max(high, low + 1))


def figure(curve: Curve, steps: Scale, names: Sequence[str], over: str = "", lift: int = 0) -> Figure:
    """The chart.

    Args:
        curve: what it shows.
        steps: see `across`.
        names: of the runs.
        over: drawn before the lines, such as marks of events.
        lift: room above the plot for it.
    """
    scale = _scale(curve)
    body = PLOT.y_axis(ticks(scale, 5), curve.label) + PLOT.x_axis(step_ticks(steps), "step") + over
    body += PLOT.limit(scale(curve.limit)) if curve.limit is not None else ""
    for place, series in enumerate(curve.series):
        pale = "".join(
            _lines(part, steps, scale, "run gone") for part in (curve.abandoned or [[]] * (place + 1))[place]
        )
        body += f'<g class="k{place}">{pale}{_trace(series, steps, scale, curve.dots, place)}</g>'
    body += PLOT.cursor(steps)
    body = f'<g transform="translate(0 {lift})">{body}</g>' if lift else body
    told, missing = [], []
    for name, series in zip(names, curve.series, strict=True):
        if known := series.known():
            (first, start), (last, end) = next(iter(known)), known.last
            told.append(f"{name}: {number(start)} at step {count(first)}, {number(end)} at step {count(last)}")
        if found := series.gaps():
            to_end = series.last[1] is None and len(found) == 1
            when = f"from step {count(found[0][0])} to the end" if to_end else f"first at step {count(found[0][0])}"
            missing.append(f"{name} {when}" if len(names) > 1 else when)
    parts = [curve.note]
    if curve.limit is not None:
        parts.append(f"Dashed: {curve.limit_title or number(curve.limit)}.")
    if any(curve.abandoned):
        parts.append("Pale: abandoned attempts.")
    if missing:
        parts.append(f"×: not a finite number, {'; '.join(missing)}.")
    alt = f"{curve.title} over the steps of training. {'; '.join(told)}." if told else f"{curve.title}: no numbers."
    return Figure(curve.key, curve.title, " ".join(filter(None, parts)), alt, WIDTH, HEIGHT + lift, body)


def _known(series: Sequence[Series]) -> numpy.ndarray:
    values: numpy.ndarray = numpy.concatenate([numpy.empty(0), *(one.known().values for one in series)])
    return values


def _scale(curve: Curve) -> Scale:
    """An axis that holds every value: a run that blows up is what a reader came to see."""
    values = _known([*curve.series, *(part for parts in curve.abandoned for part in parts)])
    if curve.limit is not None:
        values = numpy.append(values, curve.limit)
    if curve.share:
        return PLOT.y(float(values.min(initial=0.0)), float(values.max(initial=1.0)))
    return PLOT.y(*with_margin(values, curve.log), log=curve.log)


def _lines(series: Series, steps: Scale, scale: Scale, kind: str, dots: bool = False) -> str:
    """The line, broken where numbers are missing."""
    x, y, parts = series.steps, series.values, []
    columns = 1.5 * (steps.end - steps.start) / (steps.high - steps.low)
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[True], numpy.isnan(y), [True]]))).reshape(-1, 2)
    for first, end in edges:
        kept = first + thinned(x[first:end], y[first:end], _MOST, columns)
        drawn = [(steps(float(step)), scale(float(value))) for step, value in zip(x[kept], y[kept], strict=True)]
        parts.append(polyline(drawn, kind))
        if end - first == 1 or dots:
            parts += [dot(x, y, 2.8, "spot") for x, y in drawn]
    return "".join(parts)


def _trace(series: Series, steps: Scale, scale: Scale, dots: bool, place: int) -> str:
    """The line, and a cross at the first step of each stretch without numbers."""
    parts = [_lines(series, steps, scale, "run", len(series) <= (_DOTS if dots else _FEW))]
    y = PLOT.top + 4 + 11 * place
    for first, last in series.gaps()[:_CROSSES]:
        x, end = steps(first), steps(last)
        parts.append(
            cross(
                x,
                y,
                "lost",
                7,
                f"M{svg.coordinate(x + 6)} {svg.coordinate(y)}H{svg.coordinate(end)}" if end > x + 8 else "",
            )
        )
    return "".join(parts)
