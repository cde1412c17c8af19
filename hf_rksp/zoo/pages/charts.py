"""The figures of the index: architectures as radar charts (the paper's Fig. 6), scaling with size (its Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from hf_rksp.report.kit import svg
from hf_rksp.report.kit.html import template_text
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import large, line, number, share
from hf_rksp.zoo.pages.rows import RADAR, Row, radar_axes

#: Style sheet of both figures, and of the page that shows them.
SHEET = template_text("hf_rksp.zoo.pages", "zoo_figure.css")
_CELL, _RADIUS, _COLUMNS = 284, 66, 4
_LINE = 218
_TOP = 34


def spoke(place: int) -> tuple[float, float]:
    """Direction of an axis, the first one upwards."""
    angle = 2 * math.pi * place / len(RADAR) - math.pi / 2
    return math.cos(angle), math.sin(angle)


def part(value: float, low: float, high: float, log: bool) -> float:
    """Where a value lies between centre (0) and rim (1)."""
    if log:
        value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def radars(rows: Sequence[Row]) -> Figure:
    """One radar a model, side by side: laid over each other more than two cannot be told apart."""
    lines = -(-len(rows) // _COLUMNS)
    body = []
    for place, row in enumerate(rows):
        x, y = (place % _COLUMNS + 0.5) * _CELL, place // _COLUMNS * _LINE + _TOP + _RADIUS + 26
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
            reach = part(value, low, high, log) if value is not None else 0.0
            points.append(f"{coordinate(x + _RADIUS * reach * dx)} {coordinate(y + _RADIUS * reach * dy)}")
        body.append(f'<path class="radar" d="M{"L".join(points)}Z"/>')
    said = "; ".join(
        f"{line(row.entry.model.title, 60)}: near-unit mass {share(row.means['near_unit_mass'])}, "
        f"spectral radius {number(row.means['spectral_radius'])}"
        for row in rows
    )
    return Figure(
        "architectures",
        "Architectures",
        f"From centre to rim: {radar_axes()}. Mean over layers and seeds.",
        f"Radar charts of {len(rows)} models. {said}.",
        _CELL * min(len(rows), _COLUMNS),
        lines * _LINE + _TOP - 8,
        "".join(body),
        SHEET,
    )


def _web(x: float, y: float, rim: float) -> str:
    corners = (spoke(place) for place in range(len(RADAR)))
    path = "L".join(f"{coordinate(x + _RADIUS * rim * dx)} {coordinate(y + _RADIUS * rim * dy)}" for dx, dy in corners)
    return f'<path class="grid" d="M{path}Z"/>'


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BASE = 720, 320, 46, 132, 274
#: Most lines that can be told apart.
MOST_LINES = 8


def scaling(lines: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """Near-unit mass of random weights against the number of parameters, a line a family, with each seed's value."""
    known = []
    for name, members in lines:
        found = [row for row in members if row.facts["parameters"] and row.means["near_unit_mass"] is not None]
        if len({row.facts["parameters"] for row in found}) > 1:
            known.append((name, sorted(found, key=lambda row: float(row.facts["parameters"]))))
    left_out = [name for name, _ in known[MOST_LINES:]]
    known = known[:MOST_LINES]
    sizes = [float(row.facts["parameters"]) for _, rows in known for row in rows] or [1e7, 1e9]
    across = Scale(math.log10(min(sizes)) - 0.15, math.log10(max(sizes)) + 0.15, _LEFT, _WIDTH - _RIGHT, log=True)
    up = Scale(0, 1, _BASE, 24)
    body = []
    for y, tick in up.ticks():
        body += [svg.segment(_LEFT, y, _WIDTH - _RIGHT, y, "grid"), svg.text(_LEFT - 7, y + 4, tick, anchor="e")]
    for power in range(6, 13):
        for factor in (1, 3):
            if 10**across.low <= factor * 10**power <= 10**across.high:
                x = across(factor * 10.0**power)
                body.append(svg.segment(x, 24, x, _BASE, "grid"))
                body.append(svg.text(x, _BASE + 18, large(factor * 10.0**power), anchor="m"))
    body.append(svg.segment(_LEFT, _BASE, _WIDTH - _RIGHT, _BASE, "axis"))
    body.append(svg.text(4, 13, "mean near-unit mass"))
    body.append(svg.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "parameters", anchor="m"))
    ends = []
    for place, (name, rows) in enumerate(known):
        points = [(across(float(row.facts["parameters"])), up(float(row.means["near_unit_mass"]))) for row in rows]
        for (x, _), row in zip(points, rows, strict=True):
            each = row.entry.values("near_unit_mass")
            body += [
                f'<circle class="fam{place} faint" cx="{coordinate(x)}" cy="{coordinate(up(value))}" r="2"/>'
                for value in each
            ]
        for (start, end), (row, after) in zip(pairwise(points), pairwise(rows), strict=True):
            if row.projected == after.projected:
                body.append(svg.segment(*start, *end, f"fam{place}"))
        for (x, y), row in zip(points, rows, strict=True):
            told = f"{line(row.entry.model.title, 60)}: {row.shown('near_unit_mass')}"
            hollow = " hollow" if row.projected else ""
            dot = f'<circle class="fam{place} dot{hollow}" cx="{coordinate(x)}" cy="{coordinate(y)}" r="4"/>'
            body.append(f"<g><title>{svg.escape(told)}</title>{dot}</g>")
        ends.append(_End(points[-1][1], name, points[-1][0], place))
    for end, y in _spread(ends):
        body.append(svg.segment(end.x + 6, end.y, _WIDTH - _RIGHT + 6, y, f"fam{end.place} lead"))
        body.append(svg.text(_WIDTH - _RIGHT + 10, y + 4, line(end.name, 16), f"fam{end.place} name"))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{row.entry.model.title} {share(row.means['near_unit_mass'])}" for row in rows)
        for name, rows in known
    )
    return Figure(
        "scaling",
        "Near-unit mass and size",
        "Random weights. Large dots: mean over the seeds; small ones: each seed. Hollow: seen through a projection on the "
        "directions that the tokens carry; modes outside are not counted, so these do not compare with the filled "
        "ones, and no line joins them."
        + (
            " All read the same number of tokens, so that a wider model has fewer for each direction, which widens a spectrum "
            "by itself."
            if len({row.facts["tokens"] for _, rows in known for row in rows}) == 1
            else ""
        )
        + (f" Left out: {', '.join(left_out)}." if left_out else ""),
        f"Near-unit mass against parameters. {said}.",
        _WIDTH,
        _HEIGHT,
        "".join(body),
        SHEET,
    )


class _End(NamedTuple):
    """Where the line of a family ends; sorted by height."""

    y: float
    name: str
    x: float
    place: int


def _spread(ends: Sequence[_End]) -> Iterator[tuple[_End, float]]:
    """Heights for the names beside the ends of their lines, moved apart where they would lie on each other."""
    lowest = -math.inf
    for end in sorted(ends):
        lowest = max(end.y, lowest + 15)
        yield end, lowest
