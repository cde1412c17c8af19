"""Training runs as one HTML page with a time axis: curves, layer by step, and the eigenvalues as a movie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from hf_rksp.errors import InputError, OutputError
from hf_rksp.files import check_writable, put_file, reason_of
from hf_rksp.history.read import History
from hf_rksp.json_data import section
from hf_rksp.report.kit import html
from hf_rksp.report.kit.reading import margins
from hf_rksp.report.kit.text import line
from hf_rksp.report.profile.definitions import PAPER, definitions
from hf_rksp.report.run import tables, words
from hf_rksp.report.run.curves import curve_figures
from hf_rksp.report.run.heat import heat_figures
from hf_rksp.report.run.movie import Movie

_PACKAGE = "hf_rksp.report.run"
#: Runs on one page; more lines cannot be told apart.
MOST_RUNS = 6
#: Defined in the audit report, but not shown here.
_NOT_HERE = ("Kreiss constant", "Relative update", "Standard errors")
_OWN_TERMS = (
    (
        "Step",
        "Number of updates done. A profile of step k is of the weights before update k + 1; a log line of step k is written "
        "after update k.",
    ),
    (
        "Training batch, fixed probe",
        "Which tokens a profile has seen: those that the model was trained on at this step, in training mode, or the same "
        "batches every time, in evaluation mode.",
    ),
    ("Loss, gradient norm, learning rate", "As the trainer logged them."),
    (
        "KSS",
        "Koopman spectral shaping: a penalty on eigenvalues of the transitions while training. Its numbers come from its "
        "own projection of the states.",
    ),
)


def render_timeline(histories: Sequence[History]) -> str:
    """The page; equal histories give equal bytes.

    Raises:
        InputError: no history, or more than the page can tell apart.
    """
    histories = _named(histories)
    bounds = margins(histories[0].run)
    movie = Movie(histories, bounds[:3])
    moving = bool(movie.names)
    return html.page(
        _PACKAGE,
        "run.html",
        html.template_text(_PACKAGE, "run.css"),
        html.template_text(_PACKAGE, "run.js"),
        title=words.title(histories),
        names=[line(history.name, 60) for history in histories],
        facts=words.facts(histories),
        stories=[(line(history.name, 60), words.story(history)) for history in histories],
        sides=tables.side_by_side(histories),
        cautions=words.cautions(histories),
        curves=[(figure, Markup(figure.inline()), runs) for figure, runs in curve_figures(histories)],
        heats=[html.drawn(figures) for figures in heat_figures(histories)],
        stills=[html.drawn(figures) for figures in movie.stills()] if moving else [],
        stages=html.drawn([movie.stage(place) for place in range(len(histories))]) if moving else [],
        steps=movie.steps,
        layers=[line(name, 120) for name in movie.names],
        movie_caption=movie.caption(),
        data=Markup(movie.encoded() if moving else ""),
        tables=tables.profile_tables(histories),
        profile_heads=tables.PROFILE_HEADS,
        layer_heads=tables.layer_heads(),
        conditions=tables.conditions(histories),
        differences=tables.differences(histories),
        definitions=[(*own, "") for own in _OWN_TERMS]
        + [entry for entry in definitions(bounds) if entry[0] not in _NOT_HERE],
        paper=PAPER,
        version=line(section(histories[0].run, "versions").get("hf_rksp") or "", 40),
    )


def write_timeline(histories: Sequence[History], path: str | os.PathLike[str]) -> Path:
    """Write the page of these runs to ``path``; it is made aside and moved into place.

    Raises:
        InputError: no history, or more than the page can tell apart. OutputError: the file cannot be written.
    """
    page, target = render_timeline(histories).encode("utf-8", "replace"), Path(path)
    if target.is_dir() or not target.name:
        raise OutputError(f"path={str(path)!r}: is a folder; pass the name of a file, such as page.html")
    if not target.exists() or target.is_file():
        check_writable(target.parent)
    try:
        put_file(target, page)
    except OSError as error:
        raise OutputError(
            f"path={str(path)!r}: cannot be written ({reason_of(error)}); pass a file in a folder that you may "
            "write to, on a disk with room"
        ) from None
    return target


def _named(histories: Sequence[History]) -> list[History]:
    """The runs with a name each: of two that are called the same, the later one gets a number."""
    if not 1 <= len(histories) <= MOST_RUNS:
        raise InputError(f"{len(histories)} histories: pass 1 to {MOST_RUNS}, one a run")
    named: list[History] = []
    for history in histories:
        name, number = history.name, 1
        while name in [other.name for other in named]:
            number += 1
            name = f"{history.name} ({number})"
        named.append(replace(history, name=name))
    return named
