"""The pages above those of the models: README.md, index.html and comparison.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report import Table
from hf_rksp.report.kit import html
from hf_rksp.report.kit.markdown import markdown_environment
from hf_rksp.report.kit.reading import margins
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.kit.text import number
from hf_rksp.zoo.manifest import SOURCES
from hf_rksp.zoo.pages import charts, findings, trends
from hf_rksp.zoo.pages.paper_comparison import RULE, compare_with_paper
from hf_rksp.zoo.pages.rows import FACTS, RADAR, Row, radar_axes, row_of
from hf_rksp.zoo.pages.trajectories import trajectories, trajectory_figure, trajectory_table
from hf_rksp.zoo.shelf import Shelf

_PACKAGE = "hf_rksp.zoo.pages"


def index_files(shelf: Shelf) -> dict[str, bytes]:
    """README.md, index.html, comparison.md and figures/; equal results give equal bytes."""
    rows = [row_of(entry) for entry in shelf.entries]
    audited = [row for row in rows if row.entry.reports]
    figures = [charts.scaling(_series(audited)), charts.radars(_first_of_families(audited))]
    if runs := trajectories(rows):
        figures.append(trajectory_figure(runs))
    context = _context(shelf, rows)
    markdown = markdown_environment(_PACKAGE)
    files = {
        "README.md": markdown.get_template("zoo.md").render(context).encode(),
        "comparison.md": markdown.get_template("zoo_comparison.md").render(context).encode(),
        "index.html": _page(context, figures, rows).encode(),
    }
    return files | {f"figures/{figure.key}.svg": figure.document().encode() for figure in figures}


def _context(shelf: Shelf, rows: Sequence[Row]) -> dict[str, Any]:
    """What the three templates show."""
    runs = trajectories(rows)
    results = trends.trend_results(shelf.entries)
    comparisons = [(row, comparison) for row in rows if (comparison := compare_with_paper(row.entry))]
    by_id = {row.entry.model.id: row for row in rows}
    profile = next((entry.profile for entry in shelf.entries if entry.profile is not None), {})
    return {
        "families": [(name, [by_id[e.model.id] for e in entries]) for name, entries in shelf.families.items()],
        "rows": rows,
        "quantities": [(key, LAYER[key].title, LAYER[key].symbol or "reliable") for key in SEEDS],
        "bounds": margins(profile or {}),
        "findings": findings.in_short(rows, [comparison for _, comparison in comparisons], results),
        "comparisons": comparisons,
        "rule": RULE,
        "training": trajectory_table(runs) if runs else None,
        "trends": trends.trend_table(results),
        "trends_lead": trends.LEAD,
        "depth": _depth_table(rows),
        "depth_lead": findings.depth_lead(rows, runs),
        "failures": [failure for entry in shelf.entries for failure in entry.failures],
    }


def _depth_table(rows: Sequence[Row]) -> Table:
    """Nonlinearity ratio of the thirds of the depth, one row per model."""
    results = [(row, result) for row in rows if (result := trends.over_depth(row.entry))]
    return Table(
        ("Model", "Weights", *THIRDS, "From early to late"),
        tuple(
            (row.entry.model.title, row.text("weights"), *(number(value) for value in values), word)
            for row, (word, values) in results
        ),
        numeric=(2, 3, 4),
    )


def _first_of_families(rows: Sequence[Row]) -> list[Row]:
    """The first audited model of each family; one with random weights if there is one."""
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: SOURCES.index(row.entry.model.source)):
        first.setdefault(row.entry.model.family, row)
    return list(first.values())


def _series(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The models with random weights that the figure of sizes joins by a line."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row.entry.model.source == "initialised" and row.entry.model.series:
            series.setdefault(row.entry.model.series, []).append(row)
    return list(series.items())


def _page(context: dict[str, Any], figures: Sequence[Figure], rows: Sequence[Row]) -> str:
    data = json.dumps(_data(rows), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return html.page(
        _PACKAGE,
        "zoo.html",
        charts.SHEET + html.template_text(_PACKAGE, "zoo.css"),
        html.template_text(_PACKAGE, "zoo.js"),
        **context,
        figures=html.drawn(figures),
        data=Markup(data),
    )


def _data(rows: Sequence[Row]) -> dict[str, Any]:
    """What the script compares and draws."""
    return {
        "radar": [{"key": k, "name": name, "low": low, "high": high, "log": log} for k, name, low, high, log in RADAR],
        "axes": radar_axes(),
        "labels": {key: LAYER[key].title for key in SEEDS} | {fact.key: fact.title for fact in FACTS},
        "models": [
            {
                "id": row.entry.model.id,
                "means": row.means,
                "shown": {key: row.shown(key) for key in row.means},
                "texts": row.texts(),
            }
            for row in rows
            if row.entry.reports
        ],
    }
