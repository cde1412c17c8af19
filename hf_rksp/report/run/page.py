"""Training runs as one HTML page: what happened, what was measured by layer and step, and the eigenvalues as a movie."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_rksp.errors import InputError
from hf_rksp.history.read import History
from hf_rksp.json_data import section
from hf_rksp.report.kit import html
from hf_rksp.report.kit.html import Panel
from hf_rksp.report.kit.reading import margins
from hf_rksp.report.kit.text import line
from hf_rksp.report.profile.definitions import PAPER, definitions
from hf_rksp.report.run import tables, words
from hf_rksp.report.run.curves import across, figure
from hf_rksp.report.run.events import event_table, happened_figures
from hf_rksp.report.run.movie import Movie
from hf_rksp.report.run.numbers import Run
from hf_rksp.report.run.readings import Group, groups_of

#: Runs on one page; more lines cannot be distinguished.
MOST_RUNS = 6
#: Defined in the audit report, but not shown here.
_NOT_HERE = ("Kreiss constant", "Relative update", "Standard errors")
_TERMS = (
    (
        "Step",
        "Number of updates done. A reading of step k is of the weights before update k + 1; a log line of step k is written "
        "after update k.",
    ),
    (
        "Training batch, fixed probe",
        "The tokens of a reading: those that the model was trained on at this step, in training mode, or the same batches "
        "every time, in evaluation mode.",
    ),
    ("Loss, gradient norm, learning rate", "As the trainer logged them."),
)


def render_timeline(histories: Sequence[History]) -> str:
    """The page; equal histories give equal bytes.

    Raises:
        InputError: no history, or more than the page can show.
    """
    return render_runs([Run(history) for history in named(histories)])


def render_runs(runs: Sequence[Run]) -> str:
    """The page of `render_timeline`, from runs with a name each."""
    bounds = margins(runs[0].history.run)
    steps, names, groups, movie = across(runs), [run.name for run in runs], groups_of(runs), Movie(runs, bounds[:3])
    reading_tables, events = tables.reading_tables(runs), event_table(runs)
    happened = [(*html.drawn([chart])[0], places) for chart, places in happened_figures(runs, steps)]
    measured = [
        {
            "group": group,
            "stories": [(run.name, words.measured(run, group.monitor)) for run in runs],
            "curves": [(*html.drawn([figure(curve, steps, names)])[0], curve.runs) for curve in group.curves],
            "heats": [html.drawn([heat.figure for heat in row]) for row in group.heats],
        }
        for group in groups
    ]
    panels = [
        Panel("happened", "What happened"),
        *([Panel("measured", "Measured")] if measured else []),
        *([Panel("movie", "Eigenvalues")] if movie.names else []),
        *([Panel("tables", "Tables")] if reading_tables or len(runs) > 1 else []),
        Panel("setup", "Set-up"),
        Panel("definitions", "Definitions"),
    ]
    title = words.title(runs)
    return html.page_of_panels(
        "hf_rksp.report.run",
        panels,
        "run.js",
        head=f"{title} · training run · hf_rksp",
        kind="Training run" if len(runs) == 1 else "Training runs",
        date="",
        title=title,
        facts=words.facts(runs),
        made="history schema 2 · rendered from the history files alone.",
        version=line(section(runs[0].history.run, "versions").get("hf_rksp") or "", 40),
        names=names,
        stories=[(run.name, words.story(run)) for run in runs],
        cautions=words.cautions(runs),
        happened=happened,
        events=events,
        sides=tables.side_by_side(runs),
        differences=tables.differences(runs),
        measured=measured,
        stills=[html.drawn(figures) for figures in movie.stills()],
        stages=html.drawn([movie.stage(place) for place in range(len(runs))]),
        steps=movie.steps,
        layers=[line(name, 120) for name in movie.names],
        movie_caption=movie.caption(),
        data=_data(movie, groups),
        tables=reading_tables,
        conditions=tables.conditions(runs),
        paper=PAPER if movie.names else "",
        definitions=_definitions(runs, groups, bounds if movie.names else None),
        published=(),
    )


def _data(movie: Movie, groups: Sequence[Group]) -> Markup:
    """What the script reads, as JSON that may stand in a page; empty if there is nothing to move or to point at."""
    heats = [heat.data for group in groups for row in group.heats for heat in row]
    if not (movie.names or heats):
        return Markup("")
    text = json.dumps(movie.data() | {"heats": heats}, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _definitions(
    runs: Sequence[Run], groups: Sequence[Group], bounds: tuple[float, float, float, float] | None
) -> list[tuple[str, str, str]]:
    """Terms of this page, notes of the quantities that it shows, and the definitions of the spectrum if there is one."""
    found = [(*term, "") for term in _TERMS]
    quantities: dict[str, Any] = {key: q for run in reversed(runs) for key, q in run.history.quantities.items()}
    for key, quantity in quantities.items():
        if quantity.note and any(
            chart.title.lower() == quantity.title.lower() for group in groups for chart in group.curves
        ):
            found.append((line(quantity.title, 80), line(quantity.note, 400), line(key, 60)))
    if bounds:
        found += [entry for entry in definitions(bounds) if entry[0] not in _NOT_HERE]
    return found


def write_timeline(histories: Sequence[History], path: str | os.PathLike[str]) -> Path:
    """Write the page of these runs to ``path``; it is made aside and moved into place.

    Raises:
        InputError: no history, or more than the page can show. OutputError: the file cannot be written.
    """
    return html.write_page(render_timeline(histories), path)


def named(histories: Sequence[History]) -> list[History]:
    """The runs with a name each: of two that are called the same, the later one gets a number."""
    if not 1 <= len(histories) <= MOST_RUNS:
        raise InputError(f"{len(histories)} histories: pass 1 to {MOST_RUNS}, one per run")
    found: list[History] = []
    for history in histories:
        name, number = history.name, 1
        while name in [other.name for other in found]:
            number += 1
            name = f"{history.name} ({number})"
        found.append(replace(history, name=name))
    return found
