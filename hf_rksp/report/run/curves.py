"""Quantities over the steps of training: one chart a quantity, all runs on the same axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_rksp.history.read import History
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import line, number
from hf_rksp.report.run.numbers import Series, gaps, logged, mean, profiled, top

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 236, 66, 12, 30, 42
#: Drawn points of a line; beyond it, each column of the drawing keeps its ends and its extremes.
_MOST = 600
#: Values of a series up to which each gets a dot: of profiles, and of logged numbers.
_DOTS, _FEW = 100, 12
#: Marks of missing numbers that a line gets at most.
_CROSSES = 12
#: Known keys of log lines that have a chart of their own where any run has them: title, axis, note, powers of ten.
_LOGGED = {
    "eval_loss": ("Evaluation loss", "loss", "On the evaluation set.", False),
    "kss/task_loss": ("Loss without the KSS term", "loss", "What remains of the logged loss without KSS.", False),
    "kss/loss": ("KSS penalty", "penalty", "Before its weight. 0: no eigenvalue that KSS saw is penalised.", False),
    "kss/spectral_radius/max": (
        "Spectral radius seen by KSS",
        "largest |λ|, powers of ten",
        "On the projection of KSS, so not to be compared with the profiles.",
        True,
    ),
    "kss/layers_above": ("Layers above the KSS threshold", "share or number of layers", "As logged.", False),
    "kss/dropped": ("Uses that KSS dropped", "number so far", "Left out because a number was not finite.", False),
}
#: Drawn only where a run has no profiles to take them from.
_SUBSTITUTES = {
    "rksp/near_unit_mass/mean": ("near_unit_mean", "Near-unit mass, mean over layers"),
    "rksp/near_unit_mass/max": ("near_unit_max", "Near-unit mass, largest layer"),
    "rksp/spectral_radius/max": ("radius", "Spectral radius, largest layer"),
}


@dataclass(frozen=True)
class _Chart:
    key: str
    title: str
    label: str
    note: str
    series: list[Series]
    log: bool = False
    limit: float | None = None
    dots: bool = False


def curve_figures(histories: Sequence[History]) -> list[tuple[Figure, list[int]]]:
    """The charts that these runs have numbers for, all over the same steps, and which runs are in each."""
    charts = [chart for chart in _charts(histories) if any(chart.series)]
    steps = [step for chart in charts for series in chart.series for step, _ in series]
    if not steps:
        return []
    across = Scale(min(steps), max(max(steps), min(steps) + 1), _LEFT, _WIDTH - _RIGHT)
    names = [history.name for history in histories]
    return [
        (_figure(chart, across, names), [place for place, series in enumerate(chart.series) if series])
        for chart in charts
    ]


def _charts(histories: Sequence[History]) -> list[_Chart]:
    def logs(key: str) -> list[Series]:
        return [logged(history, key) for history in histories]

    loss = logs("loss")
    charts = [
        _Chart("loss", "Loss", "", "As logged: the mean since the line before.", loss, _spreads(loss)),
        _Chart("grad_norm", "Gradient norm", "powers of ten", "As logged, before clipping.", logs("grad_norm"), True),
    ]
    found = {
        "near_unit_mean": [profiled(run, lambda row: mean(row, "near_unit_mass")) for run in histories],
        "near_unit_max": [profiled(run, lambda row: top(row, "near_unit_mass")) for run in histories],
        "radius": [profiled(run, lambda row: top(row, "spectral_radius")) for run in histories],
    }
    for key, (name, title) in _SUBSTITUTES.items():
        series, replaced = found[name], False
        for place, other in enumerate(logs(key)):
            if not series[place] and other:
                series[place], replaced = other, True
        note = "One dot a profile." + (" Where a run has no profiles: as logged." if replaced else "")
        if name == "radius":
            note += " Above 1 some direction grows through a block."
            charts.append(_Chart(name, title, "largest |λ|, powers of ten", note, series, True, 1.0, True))
        else:
            charts.append(_Chart(name, title, "share of modes in the near-unit band", note, series, dots=True))
    charts += [_Chart(_slug(key), *about[:3], logs(key), about[3]) for key, about in _LOGGED.items()]
    charts.append(_Chart("learning_rate", "Learning rate", "", "As logged.", logs("learning_rate")))
    others = {key for run in histories for row in run.logs for key in row if key.startswith("kss/")} - set(_LOGGED)
    charts += [_Chart(_slug(key), line(key, 60), "", "As logged.", logs(key)) for key in sorted(others)]
    return charts


def _slug(key: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in key)


def _known(series: Sequence[Series]) -> list[float]:
    return [value for one in series for _, value in one if value is not None]


def _spreads(series: Sequence[Series]) -> bool:
    """Whether the values span so much that a linear axis would show the largest alone."""
    values = _known(series)
    return bool(values) and min(values) > 0 and max(values) > 20 * svg.median(values)


def _figure(chart: _Chart, across: Scale, names: Sequence[str]) -> Figure:
    scale = _scale(chart)
    lines = []
    for place, series in enumerate(chart.series):
        lines.append(f'<g class="k{place}">{_trace(series, across, scale, chart.dots, place)}</g>')
    told, missing = [], []
    for name, series in zip(names, chart.series, strict=True):
        known = [(step, value) for step, value in series if value is not None]
        if known:
            (first, start), (last, end) = known[0], known[-1]
            told.append(f"{line(name, 60)}: {number(start)} at step {first}, {number(end)} at step {last}")
        if found := gaps(series):
            ends = series[-1][1] is None and len(found) == 1
            when = f"from step {found[0][0]} to the end" if ends else f"first at step {found[0][0]}"
            missing.append(f"{line(name, 60)} {when}" if len(names) > 1 else when)
    caption = chart.note + (f" ×: not a finite number, {'; '.join(missing)}." if missing else "")
    label = "powers of ten" if chart.log and not chart.label else chart.label
    body = _frame(across, scale, label, chart.limit) + "".join(lines) + _cursor(across)
    alt = f"{chart.title} over the steps of training. {'; '.join(told)}." if told else f"{chart.title}: no numbers."
    return Figure(chart.key, chart.title, caption, alt, _WIDTH, _HEIGHT, body)


def _scale(chart: _Chart) -> Scale:
    """An axis that holds every value: a run that blows up is what a reader came to see."""
    values = _known(chart.series) + ([chart.limit] if chart.limit is not None else [])
    ends = (_HEIGHT - _BOTTOM, _TOP)
    if chart.log:
        powers = [math.log10(value) for value in values if value > 0] or [0.0]
        low, high = min(powers), max(powers)
        pad = max(0.05, 0.06 * (high - low))
        return Scale(low - pad, high + pad, *ends, log=True)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if chart.dots:
        return Scale(min(low, 0.0), max(high, 1.0), *ends)  # shares
    low = min(low, 0.0) if low < 0.5 * high or low == high else low
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(low - (pad if low != 0 else 0), high + pad, *ends)


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Round numbers also where an axis of powers of ten spans less than two of them."""
    if not scale.log or scale.high - scale.low > 2.2:
        return scale.ticks(5)
    powers = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    if sum(scale.low <= math.log10(value) <= scale.high for value in values) < 3:
        low, high = 10.0**scale.low, 10.0**scale.high
        step = svg.nice((high - low) / 4)
        values = [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [
        (scale(v), number(v).rstrip("0").rstrip(".") if "." in number(v) else number(v))
        for v in values
        if v > 0 and scale.low <= math.log10(v) <= scale.high
    ]


def _frame(across: Scale, scale: Scale, label: str, limit: float | None) -> str:
    base, parts = _HEIGHT - _BOTTOM, []
    for y, tick in _ticks(scale):
        parts += [svg.segment(_LEFT, y, _WIDTH - _RIGHT, y, "grid"), svg.text(_LEFT - 7, y + 4, tick, anchor="e")]
    for x, tick in step_ticks(across):
        parts += [svg.segment(x, base, x, base + 4, "axis"), svg.text(x, base + 18, tick, anchor="m")]
    parts.append(svg.segment(_LEFT, base, _WIDTH - _RIGHT, base, "axis"))
    if limit is not None:
        parts.append(svg.segment(_LEFT, scale(limit), _WIDTH - _RIGHT, scale(limit), "limit"))
    parts.append(svg.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "step", anchor="m"))
    return "".join(parts) + (svg.text(4, 13, label) if label else "")


def step_ticks(across: Scale) -> list[tuple[float, str]]:
    """Ticks at whole steps, with thousands apart."""
    width = max(1.0, svg.nice((across.high - across.low) / 5))
    places = range(math.ceil(across.low / width), math.floor(across.high / width) + 1)
    return [(across(place * width), f"{int(place * width):,}") for place in places]


def _trace(series: Series, across: Scale, scale: Scale, dots: bool, place: int) -> str:
    """The line, broken where numbers are missing; a cross marks the first step of each such stretch."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in series:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((across(step), scale(value)))
    parts = []
    for points in runs:
        drawn = _thin(points)
        if len(drawn) > 1:
            parts.append(f'<path class="run" d="M{"L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in drawn)}"/>')
        if len(points) == 1 or len(series) <= (_DOTS if dots else _FEW):
            parts += [f'<circle class="spot" cx="{coordinate(x)}" cy="{coordinate(y)}" r="2.8"/>' for x, y in drawn]
    y = _TOP + 4 + 11 * place
    for first, last in gaps(series)[:_CROSSES]:
        x = across(first)
        rest = f"M{coordinate(x + 6)} {coordinate(y)}H{coordinate(across(last))}" if across(last) > x + 8 else ""
        parts.append(f'<path class="lost" d="M{coordinate(x - 3.5)} {coordinate(y - 3.5)}l7 7m0-7l-7 7{rest}"/>')
    return "".join(parts)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """First, lowest, highest and last of each column of the drawing: a spike of one step stays."""
    if len(points) <= _MOST:
        return points
    columns: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        columns.setdefault(round(point[0] * 1.5), []).append(point)
    kept: list[tuple[float, float]] = []
    for column in columns.values():
        ends = {0, len(column) - 1}
        ends |= {choose(range(len(column)), key=lambda place, c=column: c[place][1]) for choose in (min, max)}
        kept += [column[place] for place in sorted(ends)]
    return kept


def _cursor(across: Scale) -> str:
    """Where the script draws the line through the step of the movie."""
    span = f'data-low="{across.low:g}" data-high="{across.high:g}" data-left="{_LEFT}" data-right="{_WIDTH - _RIGHT}"'
    return f'<path class="cursor" {span} data-span="{_TOP - 4}V{_HEIGHT - _BOTTOM}"/>'
