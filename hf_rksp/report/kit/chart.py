"""The axes of every chart, and the marks that go on them: ticks, titles, limits, lines, crosses, the cursor.

Coordinates are SVG units, y downwards. A chart is a `Plot` (the rectangle of the data), two scales of it, `y_axis` and `x_axis`
with their ticks, and marks; each function returns a piece of SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from hf_rksp.report.kit import svg
from hf_rksp.report.kit.svg import Scale, coordinate
from hf_rksp.report.kit.text import number

#: Coordinate and label.
Tick = tuple[float, str]
Point = tuple[float, float]
#: Widest that one character of a tick gets: on a phone the style sheets enlarge the labels of charts, in any font.
_LETTER = 10.2


@dataclass(frozen=True)
class Plot:
    """Where the data of a chart lie.

    Attributes:
        left, right, top, base: edges of the rectangle.
        edge: right edge of the drawing; no label of the x axis reaches beyond it.
        panels: left and right edge of each part, if the rectangle is divided; no line crosses the gaps between them.
    """

    left: float
    right: float
    top: float
    base: float
    edge: float
    panels: tuple[tuple[float, float], ...] = ()

    def x(self, low: float, high: float, log: bool = False) -> Scale:
        """The scale from left to right; ``low`` and ``high`` are powers of ten if it is logarithmic."""
        return Scale(low, high, self.left, self.right, log)

    def y(self, low: float, high: float, log: bool = False) -> Scale:
        """The scale from the base to the top."""
        return Scale(low, high, self.base, self.top, log)

    def y_axis(self, ticks: Iterable[Tick], title: str = "", corner: Point = (4, 13)) -> str:
        """A line across and a label on the left for each tick; the title stands in the corner above them."""
        parts = []
        for y, label in ticks:
            parts += [self._across(y, "grid"), svg.text(self.left - 7, y + 4, label, anchor="e")]
        if title:
            parts.append(svg.text(*corner, title))
        return "".join(parts)

    def x_axis(
        self,
        ticks: Iterable[Tick],
        title: str = "",
        marks: Literal["grid", "tick", ""] = "tick",
        line: bool = True,
    ) -> str:
        """Labels below the base, each with a line up to the top, a short mark, or neither; the title stands below them."""
        parts = []
        for x, label in ticks:
            if marks:
                ends = (self.top, self.base) if marks == "grid" else (self.base, self.base + 4)
                parts.append(svg.segment(x, ends[0], x, ends[1], "grid" if marks == "grid" else "axis"))
            if x + len(label) * _LETTER / 2 > self.edge:
                end = min(x + len(label) * 3.6, self.edge - 1)
                parts.append(svg.text(end, self.base + 17, label, anchor="e"))
            else:
                parts.append(svg.text(x, self.base + 17, label, anchor="m"))
        if line:
            parts.append(self._across(self.base, "axis"))
        if title:
            parts.append(svg.text((self.left + self.right) / 2, self.base + 36, title, anchor="m"))
        return "".join(parts)

    def limit(self, y: float, name: str = "") -> str:
        """A horizontal line that values are compared with, and its name on the right."""
        return self._across(y, "limit") + (svg.text(self.right + 6, y + 4, name, "small") if name else "")

    def cursor(self, steps: Scale | None = None) -> str:
        """The upright line that the script moves; with ``steps``, all that it needs to find a step by itself."""
        data = f'data-span="{coordinate(self.top - 4)}V{coordinate(self.base)}"'
        if steps is not None:
            ends = f'data-left="{coordinate(self.left)}" data-right="{coordinate(self.right)}"'
            data = f'data-low="{steps.low:g}" data-high="{steps.high:g}" {ends} {data}'
        return f'<path class="cursor" {data}/>'

    def _across(self, y: float, kind: str) -> str:
        return "".join(
            svg.segment(left, y, right, y, kind) for left, right in self.panels or ((self.left, self.right),)
        )


def ticks(scale: Scale, aim: float = 4.5) -> list[Tick]:
    """Round numbers on a scale, about ``aim`` of them; on powers of ten also if it spans fewer than two of them."""
    if not scale.log or scale.high - scale.low > 2.2:
        return scale.ticks(aim)
    powers = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    if sum(scale.low <= math.log10(value) <= scale.high for value in values) < 3:
        low, high = 10.0**scale.low, 10.0**scale.high
        step = svg.nice((high - low) / 4)
        values = [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(scale(v), _short(v)) for v in values if v > 0 and scale.low <= math.log10(v) <= scale.high]


def _short(value: float) -> str:
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def step_ticks(scale: Scale) -> list[Tick]:
    """Whole steps with separated thousands, at most six of them and never so many that their labels meet."""
    label = _LETTER * len(f"{scale.high:,.0f}")
    most = (scale.end - scale.start) / (1.5 * label - 10)  # the last label may stand left of its tick
    width = max(1.0, svg.nice((scale.high - scale.low) / max(1.0, min(5.0, most))))
    places = range(math.ceil(scale.low / width), math.floor(scale.high / width) + 1)
    return [(scale(place * width), f"{int(place * width):,}") for place in places]


def spaced(labels: Sequence[str], places: Sequence[float], room: float) -> list[Tick]:
    """Every n-th label at its place, the n the smallest that leaves ``room`` for each."""
    gap = abs(places[1] - places[0]) if len(places) > 1 else room
    every = max(1, math.ceil(room / max(gap, 1e-9)))
    return list(zip(places[::every], labels[::every], strict=True))


def with_margin(values: numpy.ndarray, log: bool = False) -> tuple[float, float]:
    """Ends of an axis that holds every value, with a margin; from 0 if that costs little. Powers of ten if ``log``.

    Args:
        values: shape ``(n,)``; there may be none.
        log: leave out what is not positive.
    """
    if log:
        powers = numpy.log10(values[values > 0]) if (values > 0).any() else numpy.zeros(1)
        low, high = float(powers.min()), float(powers.max())
        margin = max(0.05, 0.06 * (high - low))
        return low - margin, high + margin
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low = min(low, 0.0) if low < 0.5 * high or low == high else low
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - (margin if low != 0 else 0), high + margin


def polyline(points: Sequence[Point], kind: str) -> str:
    """A line through the points; nothing for fewer than two."""
    if len(points) < 2:
        return ""
    return f'<path class="{kind}" d="M{"L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)}"/>'


def dot(x: float, y: float, radius: float, kind: str = "dot") -> str:
    """A value."""
    return f'<circle class="{kind}" cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"/>'


def cross(x: float, y: float, kind: str = "none", size: float = 6, rest: str = "") -> str:
    """A number that is not defined or not finite; ``rest`` is drawn on from there."""
    start, step = f"M{coordinate(x - size / 2)} {coordinate(y - size / 2)}", coordinate(size)
    return f'<path class="{kind}" d="{start}l{step} {step}m0-{step}l-{step} {step}{rest}"/>'


def past_end(x: float, y: float) -> str:
    """A value above the end of the axis: a triangle that points there."""
    return f'<path class="past" d="M{coordinate(x - 4)} {coordinate(y + 7)}l4-7l4 7z"/>'


def thinned(x: numpy.ndarray, y: numpy.ndarray, most: int, columns: float = 1.5) -> numpy.ndarray:
    """Places of the first, lowest, highest and last point of each column if there are more than ``most``: a spike stays.

    Args:
        x: rising, shape ``(n,)``.
        y: a value at each, shape ``(n,)``.
        most: points up to which all are kept.
        columns: per unit of x.

    Returns:
        Rising places, shape ``(kept,)``.
    """
    if len(x) <= most:
        return numpy.arange(len(x))
    starts = numpy.flatnonzero(numpy.diff(numpy.rint(x * columns), prepend=numpy.nan))
    sizes = numpy.diff(starts, append=len(x))
    kept = [starts, starts + sizes - 1]
    for extreme in (numpy.minimum, numpy.maximum):
        there = numpy.flatnonzero(y == numpy.repeat(extreme.reduceat(y, starts), sizes))
        kept.append(there[numpy.searchsorted(there, starts)])  # the first one of each column
    return numpy.unique(numpy.concatenate(kept))
