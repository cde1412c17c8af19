"""Quantities over the steps of training: one chart a quantity, all runs on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rksp.history.read import History
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, cross, dot, polyline, step_ticks, thinned, ticks, with_margin
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import line, number
from hf_rksp.report.run.numbers import Series, gaps, logged, mean, profiled, top

_WIDTH, _HEIGHT = 440, 236
_PLOT = Plot(left=66, right=428, top=30, base=194, edge=_WIDTH)
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
    across = _PLOT.x(min(steps), max(max(steps), min(steps) + 1))
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
    body = _PLOT.y_axis(ticks(scale, 5), label) + _PLOT.x_axis(step_ticks(across), "step")
    body += _PLOT.limit(scale(chart.limit)) if chart.limit is not None else ""
    body += "".join(lines) + _PLOT.cursor(across)
    alt = f"{chart.title} over the steps of training. {'; '.join(told)}." if told else f"{chart.title}: no numbers."
    return Figure(chart.key, chart.title, caption, alt, _WIDTH, _HEIGHT, body)


def _scale(chart: _Chart) -> Scale:
    """An axis that holds every value: a run that blows up is what a reader came to see."""
    values = _known(chart.series) + ([chart.limit] if chart.limit is not None else [])
    if chart.dots and not chart.log:
        return _PLOT.y(min([0.0, *values]), max([1.0, *values]))  # shares
    return _PLOT.y(*with_margin(values, chart.log), log=chart.log)


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
        drawn = thinned(points, _MOST)
        parts.append(polyline(drawn, "run"))
        if len(points) == 1 or len(series) <= (_DOTS if dots else _FEW):
            parts += [dot(x, y, 2.8, "spot") for x, y in drawn]
    y = _PLOT.top + 4 + 11 * place
    for first, last in gaps(series)[:_CROSSES]:
        x = across(first)
        rest = f"M{coordinate(x + 6)} {coordinate(y)}H{coordinate(across(last))}" if across(last) > x + 8 else ""
        parts.append(cross(x, y, "lost", 7, rest))
    return "".join(parts)
