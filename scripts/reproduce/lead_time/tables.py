"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from scripts.reproduce.harness.intervals import share
from scripts.reproduce.harness.markdown import table

from .rivals import RIVALS
from .scores import FORMS, first_alarm, runs_of, scores, threshold
from .signals import SIGNALS, cusum

Row = dict[str, Any]
#: Share of the healthy tuning runs that may have an alarm.
FALSE = 0.05
#: Seeds from which on a run is for tuning.
TUNING = 500


def series_of(row: Row, signal: str) -> list[float | None]:
    """A signal of a run."""
    if signal == "CUSUM of the loss":
        return cusum(row["signals"]["loss"])
    values: list[float | None] = row["signals"][signal]
    return values


def alarms(rows: Sequence[Row], signal: str, form: str, every: int) -> dict[int, int | None]:
    """Place of a reported run -> step of its first alarm, with a threshold from the tuning runs."""
    scored = {place: runs_of(scores(series_of(row, signal), form)) for place, row in enumerate(rows)}
    tuning = [scored[place] for place, row in enumerate(rows) if row["seed"] >= TUNING and row["failure"] is None]
    above = threshold(tuning, FALSE)
    return {place: first_alarm(scored[place], above, every) for place, row in enumerate(rows) if row["seed"] < TUNING}


def line(name: str, rows: Sequence[Row], first: Callable[[int], int | None], ways: Sequence[str]) -> list[str]:
    """False alarms of the healthy runs; of the runs that fail, those with an alarm before, and how long before."""
    reported = [place for place, row in enumerate(rows) if row["seed"] < TUNING]
    healthy = [place for place in reported if rows[place]["failure"] is None]
    false = share(sum(first(place) is not None for place in healthy), len(healthy))
    leads, caught = [], {way: [0, 0] for way in ways}
    for place in reported:
        row, at = rows[place], first(place)
        if row["failure"] is None:
            continue
        caught[row["way"]][1] += 1
        if at is not None and 0.1 * row["planned"] <= at < row["failure"]:
            caught[row["way"]][0] += 1
            leads.append((row["failure"] - at, (row["failure"] - at) / row["planned"]))
    hits, fails = (sum(pair[place] for pair in caught.values()) for place in (0, 1))
    lead = [statistics.median(pair[place] for pair in leads) for place in (0, 1)] if leads else None
    return [
        name, false.text(2), f"{hits} of {fails}", *(f"{hit} of {of}" for hit, of in caught.values()),
        "-" if lead is None else f"{lead[0]:.0f}", "-" if lead is None else f"{lead[1]:.1%}",
    ]  # fmt: skip


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """How the runs ended, and what each signal says of them."""
    every, ways = settings["every"], list(dict.fromkeys(row["way"] for row in rows))
    ends = []
    for way in ways:
        mine = [row for row in rows if row["way"] == way and row["seed"] < TUNING]
        faulty = [row for row in mine if row["fault"] or way == "rate"]
        ends.append(
            [
                way, str(len(mine)), str(sum(row["failure"] is not None for row in mine)),
                str(sum(row["failure"] is None for row in mine)),
                ", ".join(str(row["failure"]) for row in faulty if row["failure"] is not None)[:200],
            ]
        )  # fmt: skip
    text = [*table(["way", "runs", "that fail", "healthy", "steps of the failures"], ends), ""]
    if not rows or not rows[0]["signals"] or not any(row["seed"] >= TUNING for row in rows):
        return "\n".join(text).rstrip() + "\n"
    lines = []
    for signal in SIGNALS:
        for form in FORMS:
            found = alarms(rows, signal, form, every)
            lines.append(line(f"{signal}, {form}", rows, found.__getitem__, ways))
    for rival in RIVALS:
        if all(row["rivals"].get(rival) is not None for row in rows):
            lines.append(line(rival, rows, lambda place: next(iter(rows[place]["rivals"][rival]), None), ways))  # noqa: B023
    heads = [
        "signal",
        "healthy runs with an alarm",
        "failures with an alarm before",
        *ways,
        "median lead in steps",
        "of the run",
    ]
    return "\n".join([*text, *table(heads, lines)]) + "\n"
