"""What training changes: models audited at several points of their training, as a figure and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from hf_rksp.json_data import finite, section
from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import LAYER
from hf_rksp.report import Table
from hf_rksp.report.kit import chart, svg
from hf_rksp.report.kit.chart import Plot
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.kit.text import line, number
from hf_rksp.zoo.pages.charts import MOST_LINES, SHEET
from hf_rksp.zoo.pages.rows import Row
from hf_rksp.zoo.pages.trends import LEVEL

#: Panels: quantity, lowest and highest value, whether in powers of ten.
_PANELS = (
    ("near_unit_mass", 0.0, 1.0, False),
    ("expansive_mass", 0.0, 1.0, False),
    ("contractive_mass", 0.0, 1.0, False),
    ("nonlinearity_ratio", 0.0, 1.0, False),
    ("reliable_fraction", 0.0, 1.0, False),
    ("spectral_radius", 1.0, 100.0, True),
)
_COLUMNS, _CELL, _LINE = 3, 240, 196
_LEFT, _RIGHT, _TOP, _BASE = 34, 14, 34, 166
_NAME = 20


class Trajectory(NamedTuple):
    """One training run: its name, and its audits in the order of training, two or more."""

    name: str
    rows: tuple[Row, ...]


def trajectories(rows: Sequence[Row]) -> list[Trajectory]:
    """The training runs with at least two audits, by series of the manifest or, without one, by family."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        model = row.entry.model
        if row.entry.reports and model.progress is not None:
            runs.setdefault(model.series or model.family, []).append(row)
    return [
        Trajectory(name, tuple(sorted(members, key=_progress))) for name, members in runs.items() if len(members) > 1
    ]


def _progress(row: Row) -> float:
    return float(row.entry.model.progress or 0)


def trajectory_figure(runs: Sequence[Trajectory]) -> Figure:
    """Means over the layers against training progress: one panel per quantity, one line per run."""
    runs = runs[:MOST_LINES]
    points = sorted({_progress(row) for run in runs for row in run.rows})
    legend = -(-len(runs) // _COLUMNS) * _NAME
    body = []
    for index, run in enumerate(runs):
        x, y = index % _COLUMNS * _CELL + _LEFT, index // _COLUMNS * _NAME + 10
        body.append(svg.segment(x, y, x + 16, y, f"fam{index}"))
        body.append(svg.text(x + 22, y + 4, line(run.name, 24), f"fam{index} name"))
    for index, panel in enumerate(_PANELS):
        body += _panel(panel, runs, points, index % _COLUMNS * _CELL, index // _COLUMNS * _LINE + legend)
    alt = "; ".join(
        f"{run.name}: near-unit mass "
        + ", ".join(f"{row.entry.model.progress:.0%} {row.shown('near_unit_mass')}" for row in run.rows)
        for run in runs
    )
    return Figure(
        "training",
        "What training changes",
        f"Small models of {len(runs)} families, trained for the zoo and audited on text or images outside their training data. "
        "Lines: means over the layers. Bars: 95% jackknife interval over groups of sequences, for one training run each. The "
        "horizontal axis is not to scale.",
        f"Six quantities against training progress. {alt}.",
        _COLUMNS * _CELL,
        -(-len(_PANELS) // _COLUMNS) * _LINE + legend,
        "".join(body),
        SHEET,
    )


def _panel(
    panel: tuple[str, float, float, bool],
    runs: Sequence[Trajectory],
    points: Sequence[float],
    left: float,
    top: float,
) -> list[str]:
    quantity, low, high, log = panel
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    plot = Plot(left + _LEFT, left + _CELL - _RIGHT, top + _TOP, top + _BASE, left + _CELL)
    up = plot.y(*ends, log)
    title, symbol = LAYER[quantity].title, LAYER[quantity].symbol
    step = (plot.right - plot.left - 24) / max(1, len(points) - 1)
    across = {progress: plot.left + 12 + step * index for index, progress in enumerate(points)}
    body = [
        svg.text(plot.left, top + 22, f"{title} {symbol}".strip(), "stack"),
        plot.y_axis(up.ticks(2)),
        plot.x_axis([(x, f"{progress:.0%}") for progress, x in across.items()], marks="", line=False),
    ]
    for index, run in enumerate(runs):
        # Bars of lines that coincide stand side by side.
        offset = 2.4 * (index - (len(runs) - 1) / 2)
        path: list[chart.Point] = []
        for row in run.rows:
            value = row.means[quantity]
            if value is None or row.entry.profile is None:
                continue
            x = across[_progress(row)] + offset
            path.append((x, up(value)))
            interval = section(row.entry.profile["aggregates"], quantity).get("interval")
            if isinstance(interval, list) and all(finite(end) is not None for end in interval):
                body.append(svg.segment(x, up(interval[0]), x, up(interval[1]), f"fam{index}"))
            label = f"{line(row.entry.model.title, 60)}: {row.shown(quantity)}"
            dot = chart.dot(x, up(value), 2.6, f"fam{index}")
            body.append(f"<g><title>{svg.escape(label)}</title>{dot}</g>")
        body.append(chart.polyline(path, f"fam{index}"))
    return body


def late_gains(runs: Sequence[Trajectory]) -> tuple[list[str], int]:
    """In which runs the ratio of the late to the early nonlinearity ratio grows by more than `LEVEL` from first to last point.

    Returns:
        Their names, and the number of runs that have these values.
    """
    gaining, known = [], 0
    for run in runs:
        first, last = (_late_over_early(row) for row in (run.rows[0], run.rows[-1]))
        if first is not None and last is not None:
            known += 1
            gaining += [run.name] if last - first > LEVEL else []
    return gaining, known


def _late_over_early(row: Row) -> float | None:
    early, late = (row.entry.mean("nonlinearity_ratio", third) for third in ("early", "late"))
    return late / early if early and late is not None else None


def trajectory_table(runs: Sequence[Trajectory]) -> Table:
    """The numbers of the figure, and the nonlinearity ratio of the thirds."""
    quantities = [quantity for quantity, *_ in _PANELS]
    heads = [LAYER[quantity].symbol or "reliable" for quantity in quantities]
    rows = []
    for run in runs:
        for row in run.rows:
            thirds = (row.entry.mean("nonlinearity_ratio", third) for third in THIRDS)
            means = (row.shown(quantity) for quantity in quantities)
            rows.append((run.name, f"{row.entry.model.progress:.0%}", *means, ", ".join(map(number, thirds))))
    columns = ("Model", "Trained", *heads, "η_nl early, middle, late")
    return Table(columns, tuple(rows), numeric=tuple(range(1, len(columns))))
