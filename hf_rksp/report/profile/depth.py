"""Quantities over depth: one panel per stack, side by side, on one vertical axis."""

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
HOLLOW = "Grey: blocks that are the identity at this point; no aggregate counts them."


@dataclass(frozen=True)
class Slots:
    """Where the layers lie.

    Attributes:
        right: end of the axis.
        centres: of each layer.
        width: of one layer.
        panels: per stack its name, left and right end, and the positions of its layers.
        edge: of the drawing.
    """

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


def slots_of(layers: Layers, right: float, edge: float) -> Slots:
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


def frame(layers: Layers, slots: Slots, scale: Scale, label: str) -> str:
    """Grid, axes, ticks, and the names of stacks and axes."""
    step = max(1, math.ceil(svg.nice(max(1.0, 26 / slots.width))))
    indices = [(slots.centres[at], layer.get("index")) for at, layer in enumerate(layers)]
    numbers = [(x, str(index)) for x, index in indices if isinstance(index, int) and index % step == 0]
    names = [
        svg.text(left, _TOP - 7, _fit(stack, right - left), "stack")
        for stack, left, right, _ in slots.panels
        if len(slots.panels) > 1
    ]
    return slots.plot.y_axis(ticks(scale), label) + slots.plot.x_axis(numbers, "layer", marks="") + "".join(names)


@dataclass(frozen=True)
class Depth:
    """What a chart over depth shows.

    Attributes:
        key: name of the quantity in the layers, and of the figure.
        title, label, note: heading, what the axis shows, and what to know.
        limits: horizontal lines, each with its name.
        top: upper end of the axis; ``None``: chosen from the values.
        width: of the drawing.
        log: powers of ten.
        smallest: least possible value; intervals are cut there.
        form: value -> text.
    """

    key: str
    title: str
    label: str
    note: str
    limits: Sequence[tuple[float, str]] = ()
    top: float | None = None
    width: int = NARROW
    log: bool = False
    smallest: float | None = None
    form: Callable[[Any], str] = number


def series(layers: Layers, chart: Depth) -> Figure:
    """A quantity with its 95% interval by layer; the line joins only neighbours that both count in the aggregates."""
    values = [finite(layer.get(chart.key)) for layer in layers]
    limits = [(limit, name) for limit, name in chart.limits if limit > 0 or not chart.log]
    if chart.log:
        values = [value if value is not None and value > 0 else None for value in values]
    known = [value for value in values if value is not None]
    ends = [pair for layer in layers if (pair := interval_of(layer, chart.key))]
    scale = _scale(known, ends, [limit for limit, _ in limits], chart.top, chart.log)
    highest = 10**scale.high if chart.log and scale.high < 300 else math.inf if chart.log else scale.high
    slots = slots_of(layers, chart.width - (_NAMES if limits else _RIGHT), chart.width)
    beyond = [at for at, value in enumerate(values) if value is not None and value > highest]
    marks = [
        _value(layer, values[at], slots.centres[at], at, chart, scale, highest, slots)
        for at, layer in enumerate(layers)
    ]
    traces = []
    for _, _, _, members in slots.panels:
        points: list[list[Point]] = [[]]
        for at in members:
            value = values[at]
            if value is None or value > highest:
                points.append([])
            elif _is_identity(layers[at]):
                points += [[(slots.centres[at], scale(value))], []]
            else:
                points[-1].append((slots.centres[at], scale(value)))
        traces += [polyline(run, "trace") for run in points]
    inside = [
        (limit, name)
        for limit, name in limits
        if scale.low <= (math.log10(limit) if chart.log else limit) <= scale.high
    ]
    lines = [slots.plot.limit(scale(limit), name) for limit, name in inside]
    caption = [chart.note]
    if beyond:
        largest = max(beyond, key=lambda at: values[at] or 0)
        text = chart.form(values[largest])
        caption.append(
            f"Above the axis, marked ▲: {len(beyond)} of {len(layers)} layers, largest {text} in {_name(layers[largest])}."
        )
        x = min(max(slots.centres[largest], _LEFT + 26), slots.right - 26)
        marks.append(svg.text(x, scale.end + 22, text, "out halo", "m"))
    if missing := len(values) - len(known):
        caption.append(f"×: not defined or not finite in {missing} of {len(layers)} layers.")
    if any(map(_is_identity, layers)):
        caption.append(HOLLOW)
    alt = f"{chart.title}, layer by layer. "
    alt += f"From {chart.form(min(known))} to {chart.form(max(known))}." if known else "No values."
    body = frame(layers, slots, scale, chart.label) + "".join(traces + lines + marks) + slots.plot.cursor()
    return Figure(chart.key, chart.title, " ".join(caption), alt, chart.width, HEIGHT, body)


def _value(
    layer: Mapping[str, Any],
    value: float | None,
    x: float,
    position: int,
    chart: Depth,
    scale: Scale,
    highest: float,
    slots: Slots,
) -> str:
    """The mark of one layer: a dot with its interval, a triangle beyond the axis, a cross without a value."""
    text = f"{_name(layer)}: {chart.form(value)}"
    if value is None:
        text = f"{_name(layer)}: not defined or not finite"
        shape = cross(x, scale.end + 8 if chart.log else scale.start - 6)
    elif value > highest:
        shape = past_end(x, scale.end + 1)
    else:
        shape = dot(x, scale(value), max(1.5, min(3.6, slots.width * 0.36)))
        if pair := interval_of(layer, chart.key):
            low, high = max(pair[0], pair[0] if chart.smallest is None else chart.smallest), pair[1]
            shape = svg.segment(x, scale(low), x, scale(high), "whisker") + shape
            text += f" (95% {span((low, high), chart.form)})"
    return _mark(position, x, layer, text + (", identity block" if _is_identity(layer) else ""), shape)


def _name(layer: Mapping[str, Any]) -> str:
    return line(name_of(layer), 60)


def _is_identity(layer: Mapping[str, Any]) -> bool:
    return layer.get("uninformative") is True


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
    slots = slots_of(layers, WIDE - _RIGHT, WIDE)
    body, missing = [], 0
    width = min(64.0, max(slots.width * 0.82, slots.width - 3))
    for position, layer in enumerate(layers):
        x = slots.centres[position]
        parts = [(kind, name, finite(layer.get(key))) for kind, name, key in MASSES]
        text = f"{_name(layer)}: " + ", ".join(f"{name} {share(value)}" for _, name, value in parts)
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
        body.append(_mark(position, x, layer, text, shape))
    legend, x = [], float(_LEFT)
    for kind, name, _ in MASSES:
        legend.append(
            f'<rect class="{kind}" x="{coordinate(x)}" y="4" width="10" height="10" rx="2"/>{svg.text(x + 14, 13, name)}'
        )
        x += 26 + 6.8 * len(name)
    caption = (
        f"Expansive |λ| > {upper:g}; near-unit {lower:g} to {upper:g}; intermediate {contractive:g} to {lower:g}; "
        f"contractive < {contractive:g}. All modes, before the ResDMD filter."
    )
    if missing:
        caption += f" ×: no masses in {missing} of {len(layers)} layers."
    if any(map(_is_identity, layers)):
        caption += " " + HOLLOW.replace("Grey", "Pale")
    known = [value for layer in layers if (value := finite(layer.get("near_unit_mass"))) is not None]
    alt = "Stacked bars, layer by layer: shares of expansive, near-unit, intermediate and contractive modes."
    alt += f" The near-unit share runs from {share(min(known))} to {share(max(known))}." if known else " No values."
    drawing = frame(layers, slots, scale, "") + "".join(body + legend) + slots.plot.cursor()
    return Figure("masses", "Where the modes lie", caption, alt, WIDE, HEIGHT, drawing)


def _mark(position: int, x: float, layer: Mapping[str, Any], text: str, shape: str) -> str:
    """What is drawn for one layer; its title is the tooltip, also where no script runs."""
    kind = "mark u" if _is_identity(layer) else "mark"
    return (
        f'<g class="{kind}" data-l="{position}" data-x="{coordinate(x)}"><title>{svg.escape(text)}</title>{shape}</g>'
    )


def _scale(
    known: list[float], ends: list[tuple[float, float]], limits: list[float], top: float | None, log: bool
) -> Scale:
    """An axis that the bulk of the values fills: one value far above the others is marked, not fitted in."""
    span_y = (HEIGHT - _BOTTOM, _TOP)
    if log:
        powers = [math.log10(value) for value in known if value > 0] or [0.0]
        cut = 3 * max(svg.median(powers), 0) + 3
        kept = [power for power in powers if power <= cut] + [math.log10(limit) for limit in limits if limit > 0]
        return Scale(math.floor(min(*kept, 0)), math.ceil(max(*kept, 1) + 0.15), *span_y, log=True)
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
