"""A forest plot: a line per case with estimates and their intervals, and with a bar between two values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from hf_rksp.report.kit.chart import Plot, dot, ticks, with_margin
from hf_rksp.report.kit.svg import Figure, Scale, coordinate, segment, text

_LABEL, _WIDTH, _TOP = 200, 480, 8
#: What notes take on the right.
_NOTE = 170
#: Height of a line without estimates, and what each kind of them adds: their intervals must not lie on each other.
_HEIGHT, _APART = 14, 8
#: Colour of each kind of estimate, of figure.css; those of the second kind are hollow.
_KINDS = ("near", "grey", "exp", "con")
_HOLLOW = 1


@dataclass(frozen=True)
class Value:
    """An estimate, and the ends of its interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Case:
    """A line of the picture.

    Attributes:
        label: what stands on its left.
        note: what stands on its right.
        values: one per kind; ``None`` if that kind says nothing of this case.
        bar: two values with a bar between them.
    """

    label: str
    values: Sequence[Value | None]
    bar: tuple[float, float] | None = None
    note: str = ""


def figure(
    key: str,
    title: str,
    caption: str,
    cases: Sequence[Case],
    kinds: Sequence[str],
    axis: str,
    bar: str = "",
    limit: tuple[float, str] | None = None,
    log: bool = False,
) -> Figure:
    """The picture.

    Args:
        key, title, caption: see `Figure`; the caption stands below the picture.
        kinds: what each of the values of a case is; at most four.
        axis: what the values are.
        bar: what a bar is.
        limit: a value for all cases, and what it is.
        log: equal factors are equal distances.
    """
    ends = [end for case in cases for one in case.values if one for end in (one.value, one.low, one.high)]
    ends += [end for case in cases if case.bar for end in case.bar] + ([limit[0]] if limit else [])
    known = numpy.array([end for end in ends if end is not None])
    height = _HEIGHT + _APART * len(kinds)
    base = _TOP + height * len(cases)
    right = _LABEL + _WIDTH + (_NOTE if any(case.note for case in cases) else 20)
    plot = Plot(_LABEL, _LABEL + _WIDTH, _TOP, base, right)
    x = plot.x(*with_margin(known, log), log)
    parts = [plot.x_axis(ticks(x), axis, "grid")]
    if limit:
        parts.append(segment(x(limit[0]), _TOP, x(limit[0]), base, "limit"))
    for place, case in enumerate(cases):
        parts.append(_drawn(case, x, _TOP + height * (place + 0.5)))
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
    if caption:
        parts.append(text(_LABEL + 4, y, caption))
        y += 18
    return Figure(key, title, caption, _said(cases, kinds, bar), right, round(y), "".join(parts))


def _drawn(case: Case, x: Scale, y: float) -> str:
    parts = [text(_LABEL - 12, y + 4, case.label, anchor="e")]
    if case.note:
        parts.append(text(_LABEL + _WIDTH + 12, y + 4, case.note))
    if case.bar:
        parts.append(_bar(x(case.bar[0]), x(case.bar[1]), y))
    shown = [(place, one) for place, one in enumerate(case.values) if one is not None]
    several = sum(one.low is not None for _, one in shown) > 1
    for place, one in reversed(shown):  # the first kind lies on top
        at = y + _APART * (place - (len(case.values) - 1) / 2) if several else y
        if one.low is not None and one.high is not None:
            ends = f"M{coordinate(x(one.low))} {coordinate(at)}H{coordinate(x(one.high))}"
            parts.append(f'<path d="{ends}" style="stroke:var(--{_KINDS[place]});stroke-width:1.4"/>')
        parts.append(_mark(place, x(one.value), at))
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
        said = [f"{word} {one.value:.2g}" for word, one in zip(kinds, case.values, strict=True) if one]
        said += [f"{bar} {case.bar[0]:g} to {case.bar[1]:g}"] if case.bar else []
        said += [case.note] if case.note else []
        lines.append(f"{case.label}: {', '.join(said) or 'nothing'}")
    return "; ".join(lines)
