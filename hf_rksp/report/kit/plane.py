"""The eigenvalues of every layer of a stack in the complex plane, coloured by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rksp.json_data import finite, items
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, ticks
from hf_rksp.report.kit.reading import name_of
from hf_rksp.report.kit.svg import Figure, coordinate
from hf_rksp.report.kit.text import count, line, number

#: Points drawn in one report, mirrored pairs counted once. About seven bytes each.
BUDGET = 16_000
#: Colours of the ramp in figure.css.
STEPS = 16
#: Modes of largest modulus that thinning never drops.
KEEP = 16
WIDTH, _SIDE, _LEFT, _TOP, _FINE = 440, 384, 46, 24, 4
#: Eigenvalues of a layer, and the diameter of a dot for up to so many; the side of a square on the frame.
_DOTS: tuple[tuple[int | None, float], ...] = ((100, 3.6), (400, 2.6), (None, 1.9))
_SQUARE = 4.5
HEIGHT = _TOP + _SIDE + 98
_PLOT = Plot(_LEFT, _LEFT + _SIDE, _TOP, _TOP + _SIDE, WIDTH)
Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """What the drawing shows: a square of side ``2 * half`` around ``(middle, 0)``."""

    middle: float
    half: float

    def over(self, value: complex) -> float:
        """How far out a value lies: above 1 it is outside."""
        return max(abs(value.real - self.middle), abs(value.imag)) / self.half

    def spot(self, value: complex) -> tuple[int, int]:
        """Place on the fine grid, counted from the middle; held at the frame."""
        pull, unit = max(1.0, self.over(value)), _SIDE / 2 * _FINE / self.half
        return round((value.real - self.middle) / pull * unit), round(value.imag / pull * unit)

    @property
    def x(self) -> svg.Scale:
        """Re to SVG units."""
        return _PLOT.x(self.middle - self.half, self.middle + self.half)

    @property
    def y(self) -> svg.Scale:
        """Im to SVG units."""
        return _PLOT.y(-self.half, self.half)


@dataclass(frozen=True)
class Cloud:
    """The points of one layer on the drawing's fine grid, the ones on the frame, and how many of ``total`` are drawn."""

    inside: list[tuple[int, int]]
    outside: list[tuple[int, int]]
    mirrored: bool
    drawn: int
    total: int


def eigenvalue_plane(
    layers: Sequence[tuple[int, Layer]], key: str, stack: str, bounds: tuple[float, float, float], budget: int
) -> Figure:
    """The figure of one stack.

    Args:
        layers: position in the report, and the layer.
        key, stack: of the figure, and the name of the stack (empty if there is only one).
        bounds: lower and upper end of the near-unit band, end of the contractive one.
        budget: points to draw at most.
    """
    spectra = [eigenvalues_of(layer) for _, layer in layers]
    window = window_of([value for values in spectra for value in values], bounds[1])
    each = max(KEEP, budget // max(1, len(layers)))
    clouds = [cloud_of(values, window, each) for values in spectra]
    title = "Eigenvalues in the complex plane" + (f": {line(stack, 60)}" if stack else "")
    body = ground(window, bounds) + "".join(
        layer_drawn(position, layer, cloud, key, place / max(1, len(layers) - 1))
        for place, ((position, layer), cloud) in enumerate(zip(layers, clouds, strict=True))
    )
    body += circles(window, bounds) + legend([layer for _, layer in layers], bounds)
    total, drawn = sum(cloud.total for cloud in clouds), sum(cloud.drawn for cloud in clouds)
    alt = f"{count(total)} eigenvalues of {len(layers)} layers around the unit circle, coloured by depth."
    return Figure(key, title, _caption(layers, spectra, window, drawn, total), alt, WIDTH, HEIGHT, body)


def eigenvalues_of(layer: Layer) -> list[complex]:
    """The eigenvalues of a layer that are finite."""
    pairs = (pair for pair in items(layer, "eigenvalues") if isinstance(pair, (list, tuple)) and len(pair) == 2)
    values = [(finite(real), finite(imag)) for real, imag in pairs]
    return [complex(real, imag) for real, imag in values if real is not None and imag is not None]


def window_of(values: list[complex], upper: float) -> Window:
    """A square, symmetric about the real axis, around the band and the bulk of the modes; all of them if that costs little."""
    x, y = upper * 1.1, upper * 1.1
    moduli = sorted(map(abs, values)) or [1.0]
    bulk = max(moduli[int(0.99 * (len(moduli) - 1))], x)
    reach = moduli[-1] if moduli[-1] <= 1.8 * bulk else 1.2 * bulk
    left = max(x, *(-value.real for value in values if abs(value) <= reach), 0.0) if values else x
    right = max(x, *(value.real for value in values if abs(value) <= reach), 0.0) if values else x
    y = max(y, *(abs(value.imag) for value in values if abs(value) <= reach), 0.0) if values else y
    return Window((right - left) / 2, 1.05 * max((right + left) / 2, y))


def cloud_of(values: list[complex], window: Window, each: int) -> Cloud:
    """Points on the grid, each spot once; thinned evenly by modulus, so that the share of every band stays as it is."""
    mirrored = sum(value.imag > 0 for value in values) == sum(value.imag < 0 for value in values)
    half = [value for value in values if value.imag >= 0] if mirrored else list(values)
    half.sort(key=lambda value: (abs(value), value.real, value.imag))
    spots: dict[tuple[int, int, bool], int] = {}
    for value in half:
        spot = (*window.spot(value), window.over(value) > 1)
        spots[spot] = spots.get(spot, 0) + (2 if mirrored and value.imag > 0 else 1)
    kept = list(spots)
    if len(kept) > each:
        rest, outer = kept[:-KEEP], kept[-KEEP:]
        step = len(rest) / max(1, each - KEEP)
        kept = [rest[int(place * step)] for place in range(each - KEEP)] + outer
    inside = sorted((x, y) for x, y, outside in kept if not outside)
    beyond = sorted((x, y) for x, y, outside in kept if outside)
    return Cloud(inside, beyond, mirrored, sum(spots[spot] for spot in kept), len(values))


def layer_drawn(position: int, layer: Layer, cloud: Cloud, key: str, depth: float) -> str:
    """The dots of one layer; ``depth`` from 0 to 1 picks the colour."""
    colour = "u" if layer.get("uninformative") is True else f"r{round(depth * (STEPS - 1))}"
    width = next(size for most, size in _DOTS if most is None or cloud.total <= most)
    paths = ""
    for points, kind, size in ((cloud.inside, "", width * _FINE), (cloud.outside, ' class="far"', _SQUARE * _FINE)):
        if points:
            paths += f'<path{kind} stroke-width="{coordinate(size)}" d="{_dots(points)}"/>'
    if cloud.mirrored:
        paths = f'<g id="{key}-{position}">{paths}</g><use href="#{key}-{position}" transform="scale(1 -1)"/>'
    name = svg.escape(line(name_of(layer), 60))
    return f'<g class="pts {colour}" data-l="{position}" transform="{transform()}"><title>{name}</title>{paths}</g>'


def transform() -> str:
    """From the fine grid, whose middle is 0 and whose y axis points up, to the drawing."""
    return f"translate({_LEFT + _SIDE / 2:g} {_TOP + _SIDE / 2:g}) scale({1 / _FINE:g} {-1 / _FINE:g})"


def shade(place: int, number: int) -> int:
    """Step of the ramp of colours for one of ``number`` layers."""
    return round(place / max(1, number - 1) * (STEPS - 1))


def constants() -> dict[str, Any]:
    """What a script needs to draw dots as `layer_drawn` does: where the frame lies on the fine grid, and widths of strokes."""
    return {
        "edge": _SIDE // 2 * _FINE,
        "square": _SQUARE * _FINE,
        "dots": [[most, round(size * _FINE, 1)] for most, size in _DOTS],
    }


def _dots(points: list[tuple[int, int]]) -> str:
    """Zero-length strokes: a round cap makes each a dot. Relative steps keep the numbers short."""
    parts, here = [], (0, 0)
    for x, y in points:
        dx, dy = x - here[0], y - here[1]
        parts.append(f"m{dx}{'' if dy < 0 else ' '}{dy}h0")
        here = (x, y)
    return "".join(parts)


def ground(window: Window, bounds: tuple[float, float, float]) -> str:
    """Ticks, axes through 0 and the near-unit band."""
    parts = [_PLOT.x_axis(ticks(window.x, 7), "Re λ", "grid", line=False), _PLOT.y_axis(ticks(window.y, 7), "Im λ")]
    parts.append(svg.segment(window.x(0), _TOP, window.x(0), _TOP + _SIDE, "axis"))
    parts.append(svg.segment(_LEFT, window.y(0), _LEFT + _SIDE, window.y(0), "axis"))
    rings = "".join(_ring(window, radius) for radius in bounds[1::-1])
    parts.append(f'<path class="band" fill-rule="evenodd" d="{rings}"/>')
    return "".join(parts)


def circles(window: Window, bounds: tuple[float, float, float]) -> str:
    """Unit circle and edges of the band, above the dots: a dense cloud must not hide what it is measured against."""
    edges = "".join(_ring(window, radius) for radius in bounds[1::-1])
    return f'<path class="edge" d="{edges}"/><path class="circle" d="{_ring(window, 1.0)}"/>'


def _ring(window: Window, radius: float) -> str:
    r = _SIDE / 2 / window.half * radius
    size, start = coordinate(r), f"M{coordinate(window.x(0) - r)} {coordinate(window.y(0))}"
    return f"{start}a{size} {size} 0 1 0 {coordinate(2 * r)} 0a{size} {size} 0 1 0 {coordinate(-2 * r)} 0z"


def legend(layers: list[Layer], bounds: tuple[float, float, float]) -> str:
    """Ramp of depth with its two ends, and what circle and band are."""
    top, left = _TOP + _SIDE + 54, float(_LEFT)
    parts = [f'<circle class="circle" fill="none" cx="{left + 6}" cy="{top}" r="5.5"/>']
    parts.append(svg.text(left + 18, top + 4, "unit circle"))
    parts.append(f'<path class="band" d="M{left + 104} {top - 6}h16v12h-16z"/>')
    parts.append(svg.text(left + 126, top + 4, f"near-unit band, |λ| from {bounds[0]:g} to {bounds[1]:g}"))
    if not layers:
        return "".join(parts)
    top += 24
    steps = sorted({shade(place, len(layers)) for place in range(len(layers))})
    first, last = (line(name_of(layer), 24) for layer in (layers[0], layers[-1]))
    parts.append(svg.text(left, top + 4, f"depth: {first}"))
    start = left + 52 + 7.4 * len(first)
    room = min(12.0, max(4.0, (WIDTH - 20 - start - 6.2 * len(last)) / len(steps)))
    for place, step in enumerate(steps):
        x = start + place * room
        parts.append(
            f'<path class="r{step}" stroke-width="12" d="M{coordinate(x)} {coordinate(top)}h{coordinate(room)}"/>'
        )
    if len(layers) > 1:
        parts.append(svg.text(start + len(steps) * room + 8, top + 4, last))
    return "".join(parts)


def _caption(
    layers: Sequence[tuple[int, Layer]], spectra: list[list[complex]], window: Window, drawn: int, total: int
) -> str:
    parts = [
        "Each dot is one mode of one block. Modes in the shaded band neither grow nor decay; the near-unit mass is their "
        "share, averaged over layers."
    ]
    beyond = [(abs(v), place) for place, values in enumerate(spectra) for v in values if window.over(v) > 1]
    if beyond:
        largest, place = max(beyond)
        parts.append(
            f"{count(len(beyond))} of {count(total)} modes lie outside the frame; squares on its edge stand for them. The "
            f"largest has |λ| = {number(largest)}, in {line(name_of(layers[place][1]), 60)}."
        )
    if drawn < total:
        parts.append(
            f"Thinned: {count(drawn)} of {count(total)} eigenvalues are drawn, evenly by modulus, and always the {KEEP} "
            "outermost of every layer; report.json has them all."
        )
    if any(layer.get("uninformative") is True for _, layer in layers):
        parts.append("Grey: blocks that are the identity at this point.")
    if not total:
        parts.append("No eigenvalues are in this report.")
    return " ".join(parts)
