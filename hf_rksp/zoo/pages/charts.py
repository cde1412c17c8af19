"""The figures of the index: architectures as radar charts (the paper's Fig. 6), near-unit mass against size (its Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from hf_rksp.report.kit import chart, svg
from hf_rksp.report.kit.chart import Plot
from hf_rksp.report.kit.html import template_text
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import large, line, number, share
from hf_rksp.zoo.pages.rows import RADAR, Row, radar_axes

#: Style sheet of the figures and of the page that shows them.
SHEET = template_text("hf_rksp.zoo.pages", "zoo_figure.css")
_CELL, _RADIUS, _COLUMNS = 284, 66, 4
_LINE = 218
_TOP = 34


def spoke(index: int) -> tuple[float, float]:
    """Direction of an axis of `RADAR`; the first points upwards."""
    angle = 2 * math.pi * index / len(RADAR) - math.pi / 2
    return math.cos(angle), math.sin(angle)


def radius(value: float, low: float, high: float, log: bool) -> float:
    """Position of a value between the centre (0) and the rim (1)."""
    if log:
        value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def radars(rows: Sequence[Row]) -> Figure:
    """One radar per model, side by side: more than two on top of each other are not legible."""
    lines = -(-len(rows) // _COLUMNS)
    body = []
    for index, row in enumerate(rows):
        x, y = (index % _COLUMNS + 0.5) * _CELL, index // _COLUMNS * _LINE + _TOP + _RADIUS + 26
        body.append(svg.text(x, y - _RADIUS - 32, line(row.entry.model.title, 34), "stack", "m"))
        body += [_web(x, y, rim) for rim in (0.5, 1.0)]
        points = []
        for axis, (key, name, low, high, log) in enumerate(RADAR):
            dx, dy = spoke(axis)
            body.append(svg.segment(x, y, x + _RADIUS * dx, y + _RADIUS * dy, "grid"))
            anchor = "m" if abs(dx) < 0.1 else "" if dx > 0 else "e"
            first, _, second = name.partition(" ")
            lx, ly = x + (_RADIUS + 7) * dx, y + (_RADIUS + 12) * dy + 3
            if anchor == "m":
                body.append(svg.text(lx, ly, name, "small", anchor))
            else:
                body.append(
                    svg.text(lx, ly - 5, first, "small", anchor) + svg.text(lx, ly + 7, second, "small", anchor)
                )
            value = row.means[key]
            reach = radius(value, low, high, log) if value is not None else 0.0
            points.append(f"{coordinate(x + _RADIUS * reach * dx)} {coordinate(y + _RADIUS * reach * dy)}")
        body.append(f'<path class="radar" d="M{"L".join(points)}Z"/>')
    alt = "; ".join(
        f"{line(row.entry.model.title, 60)}: near-unit mass {share(row.means['near_unit_mass'])}, "
        f"spectral radius {number(row.means['spectral_radius'])}"
        for row in rows
    )
    return Figure(
        "architectures",
        "Architectures",
        f"Axes from centre to rim: {radar_axes()}. Means over layers and seeds.",
        f"Radar charts of {len(rows)} models. {alt}.",
        _CELL * min(len(rows), _COLUMNS),
        lines * _LINE + _TOP - 8,
        "".join(body),
        SHEET,
    )


def _web(x: float, y: float, rim: float) -> str:
    corners = (spoke(index) for index in range(len(RADAR)))
    path = "L".join(f"{coordinate(x + _RADIUS * rim * dx)} {coordinate(y + _RADIUS * rim * dy)}" for dx, dy in corners)
    return f'<path class="grid" d="M{path}Z"/>'


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BASE = 720, 320, 46, 132, 274
#: Largest number of lines that a reader can tell apart.
MOST_LINES = 8


def scaling(series: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """Near-unit mass of random weights against the number of parameters: one line per series, one small dot per seed."""
    known = []
    for name, members in series:
        rows = [row for row in members if row.facts["parameters"] and row.means["near_unit_mass"] is not None]
        if len({row.facts["parameters"] for row in rows}) > 1:
            known.append((name, sorted(rows, key=_parameters)))
    left_out = [name for name, _ in known[MOST_LINES:]]
    known = known[:MOST_LINES]
    sizes = [_parameters(row) for _, rows in known for row in rows] or [1e7, 1e9]
    plot = Plot(_LEFT, _WIDTH - _RIGHT, 24, _BASE, _WIDTH)
    across = plot.x(math.log10(min(sizes)) - 0.15, math.log10(max(sizes)) + 0.15, log=True)
    up = plot.y(0, 1)
    body = [
        plot.y_axis(chart.ticks(up), "mean near-unit mass"),
        plot.x_axis(_size_ticks(across), "parameters", marks="grid"),
    ]
    ends = []
    for index, (name, rows) in enumerate(known):
        points = [(across(_parameters(row)), up(float(row.means["near_unit_mass"] or 0))) for row in rows]
        body += _line(index, rows, points, up)
        ends.append(_End(points[-1][1], name, points[-1][0], index))
    for end, y in _spread(ends):
        body.append(svg.segment(end.x + 6, end.y, plot.right + 6, y, f"fam{end.colour} lead"))
        body.append(svg.text(plot.right + 10, y + 4, line(end.name, 16), f"fam{end.colour} name"))
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{row.entry.model.title} {share(row.means['near_unit_mass'])}" for row in rows)
        for name, rows in known
    )
    return Figure(
        "scaling",
        "Near-unit mass and size",
        _scaling_caption([row for _, rows in known for row in rows], left_out),
        f"Near-unit mass against parameters. {alt}.",
        _WIDTH,
        _HEIGHT,
        "".join(body),
        SHEET,
    )


def _parameters(row: Row) -> float:
    return float(row.facts["parameters"])


def _size_ticks(across: Scale) -> list[chart.Tick]:
    values = [factor * 10.0**power for power in range(6, 13) for factor in (1, 3)]
    return [(across(value), _size(value)) for value in values if across.low <= math.log10(value) <= across.high]


def _size(value: float) -> str:
    """A round number of parameters: "30 M", "1 B"."""
    digits, _, unit = large(value).partition(" ")
    return f"{float(digits):g} {unit}"


def _line(index: int, rows: Sequence[Row], points: Sequence[tuple[float, float]], up: Scale) -> list[str]:
    """One series: a faint dot per seed, a line between models measured in the same way, a dot per model."""
    body = []
    for (x, _), row in zip(points, rows, strict=True):
        for value in row.entry.values("near_unit_mass"):
            body.append(chart.dot(x, up(value), 2, f"fam{index} faint"))
    for (start, end), (row, after) in zip(pairwise(points), pairwise(rows), strict=True):
        if row.projected == after.projected:
            body.append(svg.segment(*start, *end, f"fam{index}"))
    for (x, y), row in zip(points, rows, strict=True):
        label = f"{line(row.entry.model.title, 60)}: {row.shown('near_unit_mass')}"
        dot = chart.dot(x, y, 4, f"fam{index} dot{' hollow' if row.projected else ''}")
        body.append(f"<g><title>{svg.escape(label)}</title>{dot}</g>")
    return body


def _scaling_caption(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    parts = ["Random weights. Large dots: mean over the seeds. Small dots: single seeds."]
    if any(row.projected for row in rows):
        parts.append(
            "Hollow dots: models measured on fewer directions than their width, because the text has too few tokens. Modes outside "
            "these directions are not counted, so hollow dots are not comparable with filled ones, and no line joins the two kinds."
        )
    if len({row.facts["tokens"] for row in rows}) == 1:
        parts.append(
            "All models read the same number of tokens. A wider model has fewer tokens per direction, which by itself widens its "
            "spectrum."
        )
    if left_out:
        parts.append(f"Left out: {', '.join(left_out)}.")
    return " ".join(parts)


class _End(NamedTuple):
    """Where the line of a series ends; sorted by height."""

    y: float
    name: str
    x: float
    colour: int


def _spread(ends: Sequence[_End]) -> Iterator[tuple[_End, float]]:
    """Heights for the names at the ends of the lines, moved apart if they overlap."""
    lowest = -math.inf
    for end in sorted(ends):
        lowest = max(end.y, lowest + 15)
        yield end, lowest
