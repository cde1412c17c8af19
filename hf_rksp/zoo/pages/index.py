"""What stands above the pages of the models: README.md, index.html and comparison.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report import Table
from hf_rksp.report.kit import html
from hf_rksp.report.kit.markdown import markdown_environment
from hf_rksp.report.kit.reading import margins
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.kit.text import number
from hf_rksp.zoo.manifest import SOURCES
from hf_rksp.zoo.pages import charts, findings
from hf_rksp.zoo.pages import paper_comparison as compare
from hf_rksp.zoo.pages import trajectories as training
from hf_rksp.zoo.pages.rows import RADAR, TEXT_NAMES, Row, radar_axes, row_of
from hf_rksp.zoo.published import THIRDS
from hf_rksp.zoo.shelf import Shelf

_PACKAGE = "hf_rksp.zoo.pages"


def index_files(shelf: Shelf) -> dict[str, bytes]:
    """README.md, index.html, comparison.md and figures/; equal results give equal bytes."""
    rows = [row_of(entry) for entry in shelf.entries]
    audited = [row for row in rows if row.entry.reports]
    figures = [charts.radars(_of_each_family(audited)), charts.scaling(_lines(audited))]
    if known := training.courses(rows):
        figures.append(training.movement(known))
    shown = _shown(shelf, rows)
    markdown = markdown_environment(_PACKAGE)
    files = {
        "README.md": markdown.get_template("zoo.md").render(shown).encode(),
        "comparison.md": markdown.get_template("zoo_comparison.md").render(shown).encode(),
        "index.html": _page(shown, figures, rows).encode(),
    }
    return files | {f"figures/{figure.key}.svg": figure.document().encode() for figure in figures}


def _shown(shelf: Shelf, rows: Sequence[Row]) -> dict[str, Any]:
    courses = training.courses(rows)
    comparisons = [(row, beside) for row in rows if (beside := compare.beside(row.entry))]
    trends = compare.trends(shelf.entries)
    by_id = {row.entry.model.id: row for row in rows}
    profile = next((entry.profile for entry in shelf.entries if entry.profile is not None), {})
    return {
        "families": [(name, [by_id[e.model.id] for e in entries]) for name, entries in shelf.families.items()],
        "rows": rows,
        "quantities": [(key, LAYER[key].title, LAYER[key].symbol or "reliable") for key in SEEDS],
        "bounds": margins(profile or {}),
        "findings": findings.in_short(rows, [beside for _, beside in comparisons], trends),
        "comparisons": comparisons,
        "training": training.movement_table(courses) if courses else None,
        "trends": trends,
        "patterns": _patterns(rows),
        "depth_lead": findings.over_depth(rows, courses),
        "trends_lead": compare.TRENDS_LEAD,
        "failures": [failure for entry in shelf.entries for failure in entry.failures],
    }


def _patterns(rows: Sequence[Row]) -> Table:
    """Nonlinearity ratio of the thirds, model by model."""
    found = [(row, pattern) for row in rows if (pattern := compare.start_to_end(row.entry))]
    return Table(
        ("Model", "Weights", *THIRDS, "From early to late"),
        tuple(
            (row.entry.model.title, row.texts()["weights"], *(number(value) for value in values), word)
            for row, (word, values) in found
        ),
        numeric=(2, 3, 4),
    )


def _of_each_family(rows: Sequence[Row]) -> list[Row]:
    """The first audited model of each family, one with random weights where there is one."""
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: SOURCES.index(row.entry.model.source)):
        first.setdefault(row.entry.model.family, row)
    return list(first.values())


def _lines(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.entry.model.source == "initialised" and row.entry.model.line:
            families.setdefault(row.entry.model.line, []).append(row)
    return list(families.items())


def _page(shown: dict[str, Any], figures: Sequence[Figure], rows: Sequence[Row]) -> str:
    data = json.dumps(_data(rows), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return html.page(
        _PACKAGE,
        "zoo.html",
        charts.SHEET + html.template_text(_PACKAGE, "zoo.css"),
        html.template_text(_PACKAGE, "zoo.js"),
        **shown,
        figures=html.drawn(figures),
        data=Markup(data),
    )


def _data(rows: Sequence[Row]) -> dict[str, Any]:
    """What the script compares and draws."""
    return {
        "radar": [{"key": k, "name": name, "low": low, "high": high, "log": log} for k, name, low, high, log in RADAR],
        "axes": radar_axes(),
        "labels": {key: LAYER[key].title for key in SEEDS} | TEXT_NAMES,
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
