"""A picture of learning rates: a line per case, with a bar between two of them and estimates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from hf_rksp.report.kit.chart import Plot, dot, ticks, with_margin
from hf_rksp.report.kit.svg import Figure, Scale, coordinate, segment, text

_LABEL, _WIDTH, _HEIGHT, _TOP = 200, 480, 32, 8
#: Between the intervals of one case.
_APART = 8
#: Colour of each kind of estimate, of figure.css; those of the second kind are hollow.
_KINDS = ("near", "grey", "exp", "con")
_HOLLOW = 1


@dataclass(frozen=True)
class Rate:
    """A learning rate, and the ends of its interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Case:
    """A line of the picture.

    Attributes:
        label: what stands on its left.
        rates: one per kind; ``None`` if that kind says nothing of this case.
        bar: two learning rates with a bar between them.
    """

    label: str
    rates: Sequence[Rate | None]
    bar: tuple[float, float] | None = None


def figure(
    key: str,
    title: str,
    caption: str,
    cases: Sequence[Case],
    kinds: Sequence[str],
    bar: str = "",
    limit: tuple[float, str] | None = None,
) -> Figure:
    """The picture.

    Args:
        key, title, caption: see `Figure`.
        kinds: what each of the rates of a case is; at most four.
        bar: what a bar is.
        limit: a learning rate for all cases, and what it is.
    """
    values = [end for case in cases for rate in case.rates if rate for end in (rate.value, rate.low, rate.high) if end]
    values += [end for case in cases if case.bar for end in case.bar] + ([limit[0]] if limit else [])
    base = _TOP + _HEIGHT * len(cases)
    plot = Plot(_LABEL, _LABEL + _WIDTH, _TOP, base, _LABEL + _WIDTH + 20)
    x = plot.x(*with_margin(numpy.array(values), log=True), log=True)
    parts = [plot.x_axis(ticks(x), "learning rate", "grid")]
    if limit:
        parts.append(segment(x(limit[0]), _TOP, x(limit[0]), base, "limit"))
    for place, case in enumerate(cases):
        parts.append(_drawn(case, x, _TOP + _HEIGHT * (place + 0.5)))
    words = [(_mark(place, 0, 0), word) for place, word in enumerate(kinds)]
    if bar:
        words.append((_bar(-7, 7, 0), bar))
    if limit:
        words.append((segment(0, -7, 0, 7, "limit"), limit[1]))
    y = base + 58.0
    for mark, word in words:
        parts.append(
            f'<g transform="translate({_LABEL + 8} {coordinate(y - 4)})">{mark}</g>' + text(_LABEL + 24, y, word)
        )
        y += 18
    return Figure(key, title, caption, _said(cases, kinds, bar), _LABEL + _WIDTH + 20, round(y), "".join(parts))


def _drawn(case: Case, x: Scale, y: float) -> str:
    parts = [text(_LABEL - 12, y + 4, case.label, anchor="e")]
    if case.bar:
        parts.append(_bar(x(case.bar[0]), x(case.bar[1]), y))
    shown = [(place, rate) for place, rate in enumerate(case.rates) if rate is not None]
    several = sum(rate.low is not None for _, rate in shown) > 1  # their intervals must not lie on each other
    for place, rate in reversed(shown):  # the first kind lies on top
        at = y + _APART * (place - (len(case.rates) - 1) / 2) if several else y
        if rate.low is not None and rate.high is not None:
            ends = f"M{coordinate(x(rate.low))} {coordinate(at)}H{coordinate(x(rate.high))}"
            parts.append(f'<path d="{ends}" style="stroke:var(--{_KINDS[place]});stroke-width:1.4"/>')
        parts.append(_mark(place, x(rate.value), at))
    return "".join(parts)


def _mark(place: int, x: float, y: float) -> str:
    if place == _HOLLOW:
        return f'<g class="u">{dot(x, y, 4)}</g>'
    return dot(x, y, 4.5, _KINDS[place])


def _bar(left: float, right: float, y: float) -> str:
    width = coordinate(max(right - left, 1))
    return f'<rect class="mid" x="{coordinate(left)}" y="{coordinate(y - 6)}" width="{width}" height="12" rx="3"/>'


def _said(cases: Sequence[Case], kinds: Sequence[str], bar: str) -> str:
    """Every number of the picture, for who cannot see it."""
    lines = []
    for case in cases:
        said = [f"{word} {rate.value:.2g}" for word, rate in zip(kinds, case.rates, strict=True) if rate]
        said += [f"{bar} {case.bar[0]:g} to {case.bar[1]:g}"] if case.bar else []
        lines.append(f"{case.label}: {', '.join(said) or 'nothing'}")
    return "; ".join(lines)
