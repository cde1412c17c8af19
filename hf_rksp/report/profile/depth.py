"""Quantities over depth: one panel a stack, side by side, on one vertical axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rksp.json_data import finite
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, Point, cross, dot, past_end, polyline, ticks
from hf_rksp.report.kit.reading import interval_of, name_of, stacks_of
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import line, number, share, span

WIDE, NARROW, HEIGHT = 440, 340, 272
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 46, 10, 38, 46, 16
#: Room on the right for the names of horizontal lines, so that they never lie on data, in a wide font too.
_NAMES = 76
Layers = Sequence[Mapping[str, Any]]
HOLLOW = "Grey: the block is the identity at this point; it counts in no aggregate."


@dataclass(frozen=True)
class Slots:
    """Where the layers lie: right end of the axis, centre of each, width of one, panels (stack, left, right, positions)."""

    right: float
    centres: dict[int, float]
    width: float
    panels: list[tuple[str, float, float, list[int]]]
    edge: float

    @property
    def plot(self) -> Plot:
        """The same for the axes."""
        ends = tuple((left, right) for _, left, right, _ in self.panels)
        return Plot(_LEFT, self.right, _TOP, HEIGHT - _BOTTOM, self.edge, ends)


def slots(layers: Layers, right: float, edge: float) -> Slots:
    """Equal width for every layer; a gap between stacks."""
    stacks = stacks_of(layers)
    room = right - _LEFT - _GAP * max(0, len(stacks) - 1)
    width = room / max(1, len(layers))
    centres, panels, left = {}, [], float(_LEFT)
    for stack, members in stacks.items():
        for place, position in enumerate(members):
            centres[position] = left + (place + 0.5) * width
        panels.append((stack, left, left + width * len(members), members))
        left += width * len(members) + _GAP
    return Slots(right, centres, width, panels, edge)


def frame(layers: Layers, place: Slots, scale: Scale, label: str) -> str:
    """Grid, axes, ticks, and the names of stacks and axes."""
    step = max(1, math.ceil(svg.nice(max(1.0, 26 / place.width))))
    indices = [(place.centres[at], layer.get("index")) for at, layer in enumerate(layers)]
    numbers = [(x, str(index)) for x, index in indices if isinstance(index, int) and index % step == 0]
    plot = place.plot
    names = [
        svg.text(left, _TOP - 7, _fit(stack, right - left), "stack")
        for stack, left, right, _ in place.panels
        if len(place.panels) > 1
    ]
    return plot.y_axis(ticks(scale), label) + plot.x_axis(numbers, "layer", marks="") + "".join(names)


def series(
    layers: Layers,
    key: str,
    title: str,
    label: str,
    note: str,
    *,
    limits: Sequence[tuple[float, str]] = (),
    top: float | None = None,
    width: int = NARROW,
    log: bool = False,
    smallest: float | None = None,
    form: Callable[[Any], str] = number,
) -> Figure:
    """A quantity with its 95% interval by layer.

    Args:
        layers: of the report.
        key: name of the quantity, and of the figure.
        title, label, note: heading, what the axis shows, and what to know.
        limits: horizontal lines, each with its name.
        top: fixed upper end of the axis; chosen from the values where it is ``None``.
        width: of the drawing.
        log: powers of ten.
        smallest: least possible value; intervals are cut there.
        form: value -> text.
    """
    values = {position: finite(layer.get(key)) for position, layer in enumerate(layers)}
    if log:
        values = {position: value if value is not None and value > 0 else None for position, value in values.items()}
        limits = [(limit, name) for limit, name in limits if limit > 0]
    known = [value for value in values.values() if value is not None]
    ends = [interval_of(layer, key) for layer in layers]
    scale = _scale(known, [end for end in ends if end], [limit for limit, _ in limits], top, log)
    highest = 10**scale.high if log and scale.high < 300 else math.inf if log else scale.high
    place = slots(layers, width - (_NAMES if limits else _RIGHT), width)
    radius = max(1.5, min(3.6, place.width * 0.36))
    marks, traces, beyond, missing = [], [], [], 0
    for _, _, _, members in place.panels:
        points: list[list[Point]] = [[]]
        for position in members:
            layer, value, x = layers[position], values[position], place.centres[position]
            hollow = " u" if layer.get("uninformative") is True else ""
            told = f"{line(name_of(layer), 60)}: {form(value)}"
            if value is None:
                missing += 1
                base = scale.end if log else scale.start
                y = base + (8 if log else -6)
                shape = cross(x, y)
                told = f"{line(name_of(layer), 60)}: not defined or not finite"
            elif value > highest:
                beyond.append(position)
                y = scale.end + 1
                shape = past_end(x, y)
            else:
                if hollow:
                    points.append([])
                points[-1].append((x, scale(value)))
                shape = dot(x, scale(value), radius)
                if pair := ends[position]:
                    low, high = max(pair[0], smallest if smallest is not None else pair[0]), pair[1]
                    shape = svg.segment(x, scale(low), x, scale(high), "whisker") + shape
                    told += f" (95% {span((low, high), form)})"
            if hollow or value is None or value > highest:
                points.append([])  # the line joins only neighbours that both count
            told += ", identity block" if hollow else ""
            marks.append(_mark(position, x, hollow, told, shape))
        traces += [polyline(run, "trace") for run in points]
    lines = []
    for limit, name in limits:
        if scale.low <= (math.log10(limit) if log else limit) <= scale.high:
            lines.append(place.plot.limit(scale(limit), name))
    caption = note
    if beyond:
        largest = max(beyond, key=lambda position: values[position] or 0)
        shown = f"{form(values[largest])} in {line(name_of(layers[largest]), 60)}"
        caption += f" Above the axis, marked ▲: {len(beyond)} of {len(layers)} layers, largest {shown}."
        x = place.centres[largest]
        x = min(max(x, _LEFT + 26), place.right - 26)
        marks.append(svg.text(x, scale.end + 22, form(values[largest]), "out halo", "m"))
    if missing:
        caption += f" ×: not defined or not finite in {missing} of {len(layers)} layers."
    if any(layer.get("uninformative") is True for layer in layers):
        caption += " " + HOLLOW
    alt = f"{title}, layer by layer. " + (f"From {form(min(known))} to {form(max(known))}." if known else "No values.")
    body = frame(layers, place, scale, label) + "".join(traces + lines + marks) + place.plot.cursor()
    return Figure(key, title, caption, alt, width, HEIGHT, body)


#: Class, name and key of each mass, by falling modulus, as the bars are stacked from the top.
MASSES = (
    ("exp", "expansive", "expansive_mass"),
    ("near", "near-unit", "near_unit_mass"),
    ("mid", "intermediate", "intermediate_mass"),
    ("con", "contractive", "contractive_mass"),
)


def masses(layers: Layers, bounds: tuple[float, float, float]) -> Figure:
    """The four masses of each layer as one bar of height 1."""
    lower, upper, contractive = bounds
    scale = Scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    place = slots(layers, WIDE - _RIGHT, WIDE)
    body, missing = [], 0
    width = min(64.0, max(place.width * 0.82, place.width - 3))
    for position, layer in enumerate(layers):
        x = place.centres[position]
        parts = [(kind, name, finite(layer.get(key))) for kind, name, key in MASSES]
        hollow = " u" if layer.get("uninformative") is True else ""
        told = f"{line(name_of(layer), 60)}: " + ", ".join(f"{name} {share(value)}" for _, name, value in parts)
        shape, level = "", 0.0
        if all(value is None for _, _, value in parts):
            missing += 1
            y = scale(0) - 6
            shape = cross(x, y)
        for kind, _, value in reversed(parts):
            if value is not None and value > 0:
                y, height = scale(level + value), scale(level) - scale(level + value)
                level += value
                size = f'width="{width:.2f}" height="{height:.2f}"'
                shape += f'<rect class="{kind}" x="{x - width / 2:.2f}" y="{y:.2f}" {size}/>'
        body.append(_mark(position, x, hollow, told, shape))
    legend, x = [], float(_LEFT)
    for kind, name, _ in MASSES:
        legend.append(
            f'<rect class="{kind}" x="{coordinate(x)}" y="4" width="10" height="10" rx="2"/>{svg.text(x + 14, 13, name)}'
        )
        x += 25 + 5.6 * len(name)
    caption = (
        f"Expansive |λ| > {upper:g}; near-unit {lower:g} to {upper:g}; intermediate {contractive:g} to {lower:g}; "
        f"contractive < {contractive:g}. All modes, before the ResDMD filter."
    )
    if missing:
        caption += f" ×: no masses in {missing} of {len(layers)} layers."
    if any(layer.get("uninformative") is True for layer in layers):
        caption += " " + HOLLOW.replace("Grey", "Pale")
    known = [value for layer in layers if (value := finite(layer.get("near_unit_mass"))) is not None]
    alt = "Stacked bars, layer by layer: shares of expansive, near-unit, intermediate and contractive modes."
    alt += f" The near-unit share runs from {share(min(known))} to {share(max(known))}." if known else " No values."
    drawing = frame(layers, place, scale, "") + "".join(body + legend) + place.plot.cursor()
    return Figure("masses", "Where the modes lie", caption, alt, WIDE, HEIGHT, drawing)


def _mark(position: int, x: float, hollow: str, told: str, shape: str) -> str:
    """What is drawn for one layer; its title is the tooltip, also where no script runs."""
    return f'<g class="mark{hollow}" data-l="{position}" data-x="{coordinate(x)}"><title>{svg.escape(told)}</title>{shape}</g>'


def _scale(
    known: list[float], ends: list[tuple[float, float]], limits: list[float], top: float | None, log: bool
) -> Scale:
    """An axis that the bulk of the values fills: one value far above the others is marked, not fitted in."""
    span_y = (HEIGHT - _BOTTOM, _TOP)
    if log:
        powers = [math.log10(value) for value in known if value > 0] or [0.0]
        cut = 3 * max(svg.median(powers), 0) + 3
        kept = [power for power in powers if power <= cut] + [math.log10(limit) for limit in limits if limit > 0]
        low, high = math.floor(min(*kept, 0)), math.ceil(max(*kept, 1) + 0.15)
        return Scale(low, high, *span_y, log=True)
    if top is not None:
        return Scale(0, top, *span_y)
    middle = svg.median(known) if known else 1.0
    inside = [value for value in known if value <= 4 * abs(middle)] or [1.0]
    high = max(inside)
    whiskers = [end for _, end in ends if end <= 1.5 * high]
    high = 1.06 * max(high, *whiskers, *(limit for limit in limits if limit <= 2 * high), 1e-9)
    low = min(0.0, *known) if known else 0.0
    return Scale(max(low, -high), high, *span_y)


def _fit(name: str, width: float) -> str:
    """A name cut in the middle to about ``width`` units."""
    most = max(4, int(width / 6.8))
    name = line(name)
    return name if len(name) <= most else name[: most // 2 - 1] + "…" + name[-(most - most // 2) :]
