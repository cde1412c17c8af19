"""Layer by step, as colour: a quantity of layers in every reading of every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy

from hf_rksp.quantities import Quantity
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, cross, spaced
from hf_rksp.report.kit.svg import Figure, coordinate
from hf_rksp.report.kit.text import form_of, line, number
from hf_rksp.report.run.curves import slug
from hf_rksp.report.run.layered import Layered, labels_in, names_in, steps_in
from hf_rksp.report.run.numbers import Run

_WIDTH, _TOP, _BOTTOM, _RIGHT = 440, 10, 84, 8
#: Columns of a map at most: about two points of the drawing each.
_COLUMNS = 200
#: Shades of a colour: classes h0, h1, ... of readings.css.
_SHADES = 16
#: Powers of ten from a limit beyond which a value gets no deeper colour.
_REACH = 3.0
_Shade = tuple[str, int]
#: Column, columns up to the next reading of the run, row, and value.
_Cell = tuple[int, int, int, float | None]


@dataclass(frozen=True)
class Heat:
    """A heat map, and what the script needs to tell its cells: steps, layers, columns of the run, a text per cell."""

    figure: Figure
    data: dict[str, Any]


@dataclass(frozen=True)
class _Colours:
    """Value -> class of the colour and shade; for each colour of the key its class, whether it runs from deep to pale, its ends."""

    of: Callable[[float], _Shade]
    ends: list[tuple[str, bool, str, str]]


@dataclass(frozen=True)
class _Grid:
    """Where the cells lie. The first layer is at the bottom: as in the other charts, up is further."""

    steps: list[int]
    names: list[str]
    labels: list[str]
    #: Readings of one column.
    each: int = 1

    @cached_property
    def left(self) -> int:
        return 34 if max(map(len, self.labels)) <= 3 else 110

    @cached_property
    def wide(self) -> float:
        return (_WIDTH - _RIGHT - self.left) / len(self.steps)

    @cached_property
    def high(self) -> float:
        return min(26.0, max(5.0, 230 / len(self.labels)))

    @cached_property
    def base(self) -> float:
        return _TOP + self.high * len(self.labels)

    def cell(self, column: int, span: int, row: int) -> str:
        """The rectangle as a piece of a path; neighbours share their rounded edges, so that no gap shows between them."""
        left, right = (round(self.left + place * self.wide, 1) for place in (column, column + span))
        low, high = (round(self.base - place * self.high, 1) for place in (row, row + 1))
        wide, tall = coordinate(right - left), coordinate(low - high)
        return f"M{coordinate(left)} {coordinate(high)}h{wide}v{tall}h{coordinate(left - right)}z"

    def cross(self, column: int, row: int) -> str:
        return cross(self.left + (column + 0.5) * self.wide, self.base - (row + 0.5) * self.high)


def heats_of(runs: Sequence[Run], monitor: str, quantities: Sequence[tuple[str, Quantity]]) -> list[list[Heat]]:
    """For each quantity of the layers, by its name in their rows, a map per run: same columns, rows and colours for all runs."""
    layered = [run.layered(monitor) for run in runs]
    names = names_in(layered)
    if not names:
        return []
    steps = steps_in(layered)
    each = -(-len(steps) // _COLUMNS)
    grid = _Grid(steps[::each], names, labels_in(layered), each)
    columns = [numpy.searchsorted(steps, one.steps) // each for one in layered]
    found = []
    for name, quantity in quantities:
        cells = [_cells(*pair, grid, name) for pair in zip(layered, columns, strict=True)]
        values = [value for run in cells for *_, value in run if value is not None]
        if values:
            colours = _colours(quantity, values)
            key = slug(f"{monitor}/{name}")
            found.append(
                [_heat(f"heat-{key}-{at}", quantity, colours, grid, cells[at], runs[at]) for at in range(len(runs))]
            )
    return found


def _cells(layered: Layered, columns: numpy.ndarray, grid: _Grid, key: str) -> list[_Cell]:
    """Of a run. A cell reaches to the run's next reading; of several readings in one column it has the largest value."""
    values, there = layered.grid(key, columns, len(grid.steps), grid.names)
    known, own = numpy.isfinite(values).tolist(), numpy.unique(columns)
    spans = dict(zip(own.tolist(), [*numpy.diff(own).tolist(), 1], strict=False))
    spots, numbers = numpy.argwhere(there).tolist(), values.tolist()
    return [(column, spans[column], row, numbers[column][row] if known[column][row] else None) for column, row in spots]


def _colours(quantity: Quantity, values: Sequence[float]) -> _Colours:
    """A share from 0; two colours that meet at a limit, in powers of ten; else one colour from the smallest to the largest."""
    form, low, high = form_of(quantity), min(values), max(values)
    if quantity.unit == "share" and low >= 0:
        top = max(0.1, math.ceil(min(high, 1.0) * 10) / 10)
        return _Colours(lambda value: ("hn", _shade(value / top)), [("hn", False, "0", f"{top:g}")])
    if quantity.limit and quantity.limit > 0 and low > 0:
        return _around(quantity.limit, values)
    if quantity.logarithmic and low > 0:
        start, width = math.log10(low), math.log10(high / low) or 1.0
        return _Colours(
            lambda value: ("hn", _shade((math.log10(value) - start) / width)), [("hn", False, form(low), form(high))]
        )
    start = 0.0 if 0 <= low < 0.5 * high else low
    width = high - start or 1.0
    return _Colours(lambda value: ("hn", _shade((value - start) / width)), [("hn", False, form(start), form(high))])


def _around(limit: float, values: Sequence[float]) -> _Colours:
    """Two colours that meet at the limit; the one below it only if it is needed."""
    powers = [math.log10(value / limit) for value in values]
    reach = min(max([abs(power) for power in powers] + [math.log10(1.5)]), _REACH)

    def colour(value: float) -> _Shade:
        power = math.log10(value / limit)
        return ("hx" if power > 0 else "hc"), _shade(abs(power) / reach)

    more = any(power > reach for power in powers)
    ends = [("hx", False, f"{limit:g}", number(limit * 10**reach) + (" and more" if more else ""))]
    if any(power < 0 for power in powers):
        ends.insert(0, ("hc", True, number(limit * 10**-reach), ""))
    return _Colours(colour, ends)


def _shade(part: float) -> int:
    return round(min(1.0, max(0.0, part)) * (_SHADES - 1))


def _heat(key: str, quantity: Quantity, colours: _Colours, grid: _Grid, cells: Sequence[_Cell], run: Run) -> Heat:
    form, title = form_of(quantity), f"{quantity.title[:1].upper()}{quantity.title[1:]} by layer and step"
    known = [value for *_, value in cells if value is not None]
    shades: dict[_Shade, str] = {}
    for *spot, value in cells:
        if value is not None:
            shade = colours.of(value)
            shades[shade] = shades.get(shade, "") + grid.cell(*spot)
    crosses = "".join(grid.cross(column, row) for column, _, row, value in cells if value is None)
    done = {(column + more, row) for column, span, row, _ in cells for more in range(span)}
    every = [(column, row) for column in range(len(grid.steps)) for row in range(len(grid.labels))]
    empty = "".join(grid.cell(column, 1, row) for column, row in every if (column, row) not in done)
    body = f'<path class="empty" d="{empty}"/>' if empty else ""
    body += "".join(f'<path class="cell {name} h{shade}" d="{d}"/>' for (name, shade), d in sorted(shades.items()))
    body += crosses + _axes(grid) + _key(grid, colours) + _frame(grid)
    caption = "One column per reading, the first layer at the bottom."
    if grid.each > 1:
        caption = f"A column has {grid.each} readings and shows the largest value of each layer. The first layer is at the bottom."
    elif any(span > 1 for _, span, _, _ in cells):
        caption = "Columns are the readings of all runs; a cell reaches to the next reading of its run."
    caption += " ×: not a finite number." if crosses else ""
    caption += " Grey: no reading, or the layer is missing in it." if empty else ""
    alt = f"{title}, {run.name}. "
    alt += f"From {form(min(known))} to {form(max(known))}." if known else "No values."
    alt += " The numbers are in the table of readings."
    figure = Figure(key, title, caption, alt, _WIDTH, round(grid.base + _BOTTOM), body)
    return Heat(figure, _data(grid, cells, form))


def _data(grid: _Grid, cells: Sequence[_Cell], form: Callable[[Any], str]) -> dict[str, Any]:
    columns = sorted({column for column, *_ in cells})
    texts: dict[int, list[str | None]] = {column: [None] * len(grid.names) for column in columns}
    for column, _, row, value in cells:
        texts[column][row] = form(value)
    return {
        "steps": grid.steps,
        "layers": [line(name, 120) for name in grid.names],
        "columns": columns,
        "texts": [texts[column] for column in columns],
    }


def _axes(grid: _Grid) -> str:
    plot = Plot(grid.left, _WIDTH - _RIGHT, _TOP, grid.base, _WIDTH)
    rows = [grid.base - (row + 0.5) * grid.high for row in range(len(grid.labels))]
    columns = [grid.left + (column + 0.5) * grid.wide for column in range(len(grid.steps))]
    layers = [svg.text(grid.left - 6, y + 4, line(name)[-15:], anchor="e") for y, name in spaced(grid.labels, rows, 16)]
    steps = spaced([f"{step:,}" for step in grid.steps], columns, 56)
    return "".join(layers) + plot.x_axis(steps, "step of the reading", marks="", line=False)


def _key(grid: _Grid, colours: _Colours) -> str:
    """The colours, and what their ends mean."""
    parts, x, top, step = [], float(grid.left), grid.base + 50, 8.0
    for name, falling, start, end in colours.ends:
        for place in range(_SHADES):
            shade = _SHADES - 1 - place if falling else place
            d = f"M{coordinate(x + place * step)} {coordinate(top)}h{step:g}v9h{-step:g}z"
            parts.append(f'<path class="cell {name} h{shade}" d="{d}"/>')
        parts.append(svg.text(x, top + 24, start, anchor="" if x == grid.left else "m"))
        x += step * _SHADES
        parts.append(svg.text(x, top + 24, end, anchor="m") if end else "")
    return "".join(parts)


def _frame(grid: _Grid) -> str:
    """Where the script draws the frame around the step, or the cell, that is chosen."""
    return (
        f'<path class="column" data-left="{grid.left}" data-wide="{grid.wide:.4f}" data-top="{_TOP}" '
        f'data-high="{grid.high:.4f}" data-rows="{len(grid.labels)}"/>'
    )
