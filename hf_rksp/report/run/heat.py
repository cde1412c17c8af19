"""Layer by step, as colour: near-unit mass and spectral radius of every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_rksp.history.read import History, layers_at
from hf_rksp.json_data import finite
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, cross, spaced
from hf_rksp.report.kit.svg import Figure, coordinate
from hf_rksp.report.kit.text import line, number, share
from hf_rksp.report.run.numbers import layer_labels, layer_names, profile_steps

_WIDTH, _TOP, _BOTTOM, _RIGHT = 440, 10, 84, 8
#: Shades of a colour: classes h0, h1, ... of timeline.css.
_SHADES = 16
#: Powers of ten beyond which a spectral radius gets no deeper colour.
_REACH = 3.0
_Shade = tuple[str, int]
#: Column, columns up to the next profile of the run, row, and value.
_Cell = tuple[int, int, int, float | None]


@dataclass(frozen=True)
class _Quantity:
    """What is drawn.

    Attributes:
        key, title: stable name, and heading.
        cells: of each run.
        colour: value -> class of the colour and shade.
        form: value -> text.
        ends: for each colour of the key its class, whether it runs from deep to pale, and what its two ends mean.
    """

    key: str
    title: str
    cells: list[list[_Cell]]
    colour: Callable[[float], _Shade]
    form: Callable[[float], str]
    ends: list[tuple[str, bool, str, str]]


@dataclass(frozen=True)
class _Grid:
    """Where the cells lie. The first layer is at the bottom: as in the other charts, up is further."""

    steps: list[int]
    labels: list[str]

    @property
    def left(self) -> int:
        return 34 if max(map(len, self.labels)) <= 3 else 110

    @property
    def wide(self) -> float:
        return (_WIDTH - _RIGHT - self.left) / len(self.steps)

    @property
    def high(self) -> float:
        return min(26.0, max(5.0, 230 / len(self.labels)))

    @property
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


def heat_figures(histories: Sequence[History]) -> list[list[Figure]]:
    """For each quantity one figure a run, with the same columns, rows and colours for all runs."""
    if not layer_names(histories):
        return []
    grid = _Grid(profile_steps(histories), list(layer_labels(histories).values()))
    return [
        [_figure(quantity, grid, place, line(history.name, 60)) for place, history in enumerate(histories)]
        for quantity in (_near_unit(histories), _radius(histories))
    ]


def _near_unit(histories: Sequence[History]) -> _Quantity:
    cells = _cells(histories, "near_unit_mass")
    top = max((value for run in cells for *_, value in run if value is not None), default=1.0)
    top = min(1.0, max(0.1, math.ceil(top * 10) / 10))
    ends = [("hn", False, "0", f"{top:g}")]
    title = "Near-unit mass by layer and step"
    return _Quantity("near_unit", title, cells, lambda value: ("hn", _shade(value / top)), share, ends)


def _radius(histories: Sequence[History]) -> _Quantity:
    """Two colours that meet at 1, on powers of ten; the lower one only where it is needed."""
    cells = _cells(histories, "spectral_radius")
    powers = [math.log10(v) for run in cells for *_, v in run if v is not None and v > 0]
    reach = min(max([abs(power) for power in powers] + [math.log10(1.5)]), _REACH)

    def colour(value: float) -> _Shade:
        power = math.log10(value) if value > 0 else -reach
        return ("hx" if power > 0 else "hc"), _shade(abs(power) / reach)

    beyond = any(power > reach for power in powers)
    ends = [("hx", False, "1", number(10**reach) + (" and more" if beyond else ""))]
    if any(power < 0 for power in powers):
        ends.insert(0, ("hc", True, number(10**-reach), ""))
    return _Quantity("radius", "Spectral radius by layer and step", cells, colour, number, ends)


def _shade(part: float) -> int:
    return round(min(1.0, max(0.0, part)) * (_SHADES - 1))


def _cells(histories: Sequence[History], key: str) -> list[list[_Cell]]:
    """Of each run. A cell reaches to the run's next profile, as the movie holds a profile until then."""
    columns = {step: place for place, step in enumerate(profile_steps(histories))}
    rows = {name: place for place, name in enumerate(layer_names(histories))}
    found: list[list[_Cell]] = []
    for history in histories:
        own = [columns[profile["step"]] for profile in history.spectra]
        spans = [after - before for before, after in pairwise(own)] + [1]
        found.append(
            [
                (column, span, rows[name], finite(layer.get(key)))
                for column, span, profile in zip(own, spans, history.spectra, strict=False)
                for name, layer in layers_at(profile).items()
            ]
        )
    return found


def _figure(quantity: _Quantity, grid: _Grid, place: int, run: str) -> Figure:
    cells = quantity.cells[place]
    known = [value for *_, value in cells if value is not None]
    shades: dict[_Shade, str] = {}
    for *spot, value in cells:
        if value is not None:
            shade = quantity.colour(value)
            shades[shade] = shades.get(shade, "") + grid.cell(*spot)
    crosses = "".join(grid.cross(column, row) for column, _, row, value in cells if value is None)
    done = {(column + more, row) for column, span, row, _ in cells for more in range(span)}
    every = [(column, row) for column in range(len(grid.steps)) for row in range(len(grid.labels))]
    empty = "".join(grid.cell(column, 1, row) for column, row in every if (column, row) not in done)
    body = f'<path class="empty" d="{empty}"/>' if empty else ""
    body += "".join(f'<path class="cell {name} h{shade}" d="{d}"/>' for (name, shade), d in sorted(shades.items()))
    body += crosses + _axes(grid) + _key(grid, quantity) + _column(grid)
    caption = "One column a profile, the first layer at the bottom."
    if any(span > 1 for _, span, _, _ in cells):
        caption = "Columns are the profiles of all runs; a cell reaches to the next one of its own run."
    caption += " ×: not a finite number." if crosses else ""
    caption += " Grey: not profiled, or the layer could not be solved." if empty else ""
    alt = f"{quantity.title}, {run}. "
    alt += f"From {quantity.form(min(known))} to {quantity.form(max(known))}." if known else "No values."
    alt += " The numbers are in the table of profiles."
    height = round(grid.base + _BOTTOM)
    return Figure(f"heat-{quantity.key}-{place}", quantity.title, caption, alt, _WIDTH, height, body)


def _axes(grid: _Grid) -> str:
    plot = Plot(grid.left, _WIDTH - _RIGHT, _TOP, grid.base, _WIDTH)
    rows = [grid.base - (row + 0.5) * grid.high for row in range(len(grid.labels))]
    columns = [grid.left + (column + 0.5) * grid.wide for column in range(len(grid.steps))]
    layers = [svg.text(grid.left - 6, y + 4, line(name)[-15:], anchor="e") for y, name in spaced(grid.labels, rows, 16)]
    steps = spaced([f"{step:,}" for step in grid.steps], columns, 56)
    return "".join(layers) + plot.x_axis(steps, "profiled step", marks="", line=False)


def _key(grid: _Grid, quantity: _Quantity) -> str:
    """The colours, and what their ends mean."""
    parts, x, top, step = [], float(grid.left), grid.base + 50, 8.0
    for name, falling, start, end in quantity.ends:
        for place in range(_SHADES):
            shade = _SHADES - 1 - place if falling else place
            d = f"M{coordinate(x + place * step)} {coordinate(top)}h{step:g}v9h{-step:g}z"
            parts.append(f'<path class="cell {name} h{shade}" d="{d}"/>')
        parts.append(svg.text(x, top + 24, start, anchor="" if x == grid.left else "m"))
        x += step * _SHADES
        parts.append(svg.text(x, top + 24, end, anchor="m") if end else "")
    return "".join(parts)


def _column(grid: _Grid) -> str:
    """Where the script draws the frame around the step, or the cell, that the movie shows."""
    return (
        f'<path class="column" data-left="{grid.left}" data-wide="{grid.wide:.4f}" data-top="{_TOP}" '
        f'data-high="{grid.high:.4f}" data-rows="{len(grid.labels)}"/>'
    )
