"""The few pieces of SVG that the figures are made of: scales, ticks, and a document that reads on light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from xml.sax.saxutils import escape as _escape

from hf_rksp.report.kit.text import LONGEST, line, power_of_ten

#: Height of the title line that stand-alone files carry above the drawing.
_TITLE = 34


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: stable name; the file is ``figures/{key}.svg``.
        title, caption: what is drawn, and what to know when reading it. alt: what a reader sees in it, in words.
        width, height: of the drawing, in SVG units.
        body: the drawing.
        sheet: text of its own style sheet, besides the one of all figures.
    """

    key: str
    title: str
    caption: str
    alt: str
    width: int
    height: int
    body: str
    sheet: str = ""

    def inline(self) -> str:
        """The ``<svg>`` for a page that carries ``figure.css`` itself."""
        return (
            f'<svg class="fig" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-labelledby="{self.key}-t {self.key}-d">{self._names()}{self.body}</svg>'
        )

    def document(self) -> str:
        """A stand-alone file with its style, its title and an opaque ground.

        The ground is opaque because a viewer's theme and the page's theme can differ (GitHub's theme is a setting of the
        account, prefers-color-scheme one of the system).
        """
        top, height, width = -_TITLE - 4, self.height + _TITLE + 8, self.width + 20
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="fig" viewBox="-10 {top} {width} {height}" '
            f'width="{width * 1.25:g}" height="{height * 1.25:g}" role="img" aria-labelledby="{self.key}-t {self.key}-d">'
            f"{self._names()}<style>{style(self.sheet)}</style>"
            f'<rect class="ground" x="-10" y="{top}" width="{width}" height="{height}" rx="8"/>'
            f'<text class="title" x="4" y="-12">{escape(self.title)}</text>{self.body}</svg>\n'
        )

    def _names(self) -> str:
        return f'<title id="{self.key}-t">{escape(self.title)}</title><desc id="{self.key}-d">{escape(self.alt, 10_000)}</desc>'


@cache
def style(sheet: str = "") -> str:
    """The style of all figures, and after it the text of one more ``sheet``, without comments."""
    text = files("hf_rksp.report.kit").joinpath("templates", "figure.css").read_text(encoding="utf-8") + sheet
    return "".join(part.partition("*/")[2] if place else part for place, part in enumerate(text.split("/*")))


def escape(text: object, longest: int = LONGEST) -> str:
    """Text for XML, on one line."""
    return _escape(line(text, longest), {'"': "&quot;", "'": "&#39;"})


def coordinate(value: float) -> str:
    """A coordinate with one decimal, as few characters as possible."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "") -> str:
    """A ``<text>``; ``anchor`` is "m" (middle) or "e" (end)."""
    classes = " ".join(name for name in (kind, anchor) if name)
    return (
        f'<text x="{coordinate(x)}" y="{coordinate(y)}"'
        + (f' class="{classes}"' if classes else "")
        + f">{escape(content)}</text>"
    )


def segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<path class="{kind}" d="M{coordinate(x1)} {coordinate(y1)}L{coordinate(x2)} {coordinate(y2)}"/>'


@dataclass(frozen=True)
class Scale:
    """Value -> coordinate, linear or in powers of ten; values outside are held at the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Coordinate of ``value``."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        part = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, part))

    def ticks(self, aim: float = 4.5) -> list[tuple[float, str]]:
        """Coordinate and label of each tick, at most about ``aim`` + 1 of them."""
        if self.log:
            step = max(1, math.ceil((self.high - self.low) / 5))
            powers = range(math.ceil(self.low), math.floor(self.high) + 1, step)
            return [(self(10.0**power), power_of_ten(power)) for power in powers]
        width = nice((self.high - self.low) / aim)
        first, last = math.ceil(self.low / width - 1e-9), math.floor(self.high / width + 1e-9)
        return [(self(place * width), _tick(place * width, width)) for place in range(first, last + 1)]


def nice(step: float) -> float:
    """The round step (1, 2 or 5 times a power of ten) next above ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def median(values: Iterable[float]) -> float:
    """The upper median."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _tick(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−") if abs(value) > step / 2 else "0"
