"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from scripts.reproduce.harness.intervals import share
from scripts.reproduce.harness.markdown import table

from .rivals import RIVALS, SCALES
from .scores import FORMS, all_alarms, runs_of, scores, threshold
from .signals import SIGNALS, cusum

Row = dict[str, Any]
#: Share of the healthy tuning runs that may have an alarm.
FALSE = 0.05
#: Seeds from which on a run is for tuning.
TUNING = 500


def forms_of(row: Row, signal: str) -> dict[str, list[float | None]]:
    """The forms of a signal of a run."""
    if signal == "CUSUM of the loss":
        return {"level": cusum(row["signals"]["loss"]["level"])}
    forms: dict[str, list[float | None]] = row["signals"][signal]
    return forms


def healthy(row: Row) -> bool:
    """A run that does not fail, and into which no fault was put."""
    return row["failure"] is None and not (row["fault"] and row["way"] != "rate")


def network(row: Row) -> str:
    """Runs of one network and learning rate share a threshold."""
    return "recall" if row["way"] == "rate" else "llama" if row["way"] != "bits" else "bits"


def alarms(rows: Sequence[Row], signal: str, form: str, every: int) -> dict[int, list[int]]:
    """Place of a reported run -> steps of its readings with an alarm, with a threshold from the healthy tuning runs."""
    scored = {place: runs_of(scores(forms_of(row, signal), form)) for place, row in enumerate(rows)}
    found = {}
    for name in {network(row) for row in rows}:
        mine = [place for place, row in enumerate(rows) if network(row) == name]
        tuning = [scored[place] for place in mine if rows[place]["seed"] >= TUNING and healthy(rows[place])]
        above = threshold(tuning, FALSE)
        found |= {p: all_alarms(scored[p], above, every) for p in mine if rows[p]["seed"] < TUNING}
    return found


def alarms_of(rows: Sequence[Row], rival: str, tuned: bool) -> dict[int, list[int]]:
    """The same of another tool: at its own threshold, or at the least multiple of it that few enough tuning runs are above.

    If too many are above each multiple, the largest one is taken.
    """
    found = {}
    for name in {network(row) for row in rows}:
        mine = [place for place, row in enumerate(rows) if network(row) == name]
        tuning = [rows[p]["rivals"][rival] for p in mine if rows[p]["seed"] >= TUNING and healthy(rows[p])]
        allowed = [scale for scale in SCALES if sum(bool(run[f"{scale:g}"]) for run in tuning) <= FALSE * len(tuning)]
        scale = min(allowed, default=SCALES[-1]) if tuned else 1.0
        found |= {p: rows[p]["rivals"][rival][f"{scale:g}"] for p in mine if rows[p]["seed"] < TUNING}
    return found


def begin_of(row: Row) -> float:
    """The first step at which an alarm counts as a warning: an earlier one is false."""
    return max(0.1 * row["planned"], row["begin"] or 0)


def warnings(rows: Sequence[Row], steps: Callable[[int], list[int]], every: int) -> dict[int, int | None]:
    """Place of a reported run that fails -> steps from the first warning to the failure; ``None`` without a warning."""
    found: dict[int, int | None] = {}
    for place, row in enumerate(rows):
        if row["seed"] < TUNING and row["failure"] is not None:
            before = [at for at in steps(place) if begin_of(row) <= at <= row["failure"] - every]
            found[place] = row["failure"] - before[0] if before else None
    return found


def line(
    name: str, rows: Sequence[Row], steps: Callable[[int], list[int]], ways: Sequence[str], every: int
) -> list[str]:
    """False alarms; of the runs that fail, those with an alarm before, and how long before.

    False are alarms in a healthy run, and in a failing one those in its first tenth or before its fault. A warning comes later,
    and at least one reading before the failure.
    """
    false, caught = [], {way: [0, 0] for way in ways}
    found = warnings(rows, steps, every)
    for place, row in enumerate(rows):
        if row["seed"] >= TUNING:
            continue
        if healthy(row):
            false.append(bool(steps(place)))
        if place in found:
            false.append(any(at < begin_of(row) for at in steps(place)))
            caught[row["way"]][0] += found[place] is not None
            caught[row["way"]][1] += 1
    leads = [(lead, lead / rows[place]["planned"]) for place, lead in found.items() if lead is not None]
    wrong = share(sum(false), len(false))
    hits, fails = (sum(pair[place] for pair in caught.values()) for place in (0, 1))
    lead = [statistics.median(pair[place] for pair in leads) for place in (0, 1)] if leads else None
    return [
        name, wrong.text(2), f"{hits} of {fails}", *(f"{hit} of {of}" for hit, of in caught.values()),
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
                str(sum(map(healthy, mine))),
                str(sum(row["failure"] is None and not healthy(row) for row in mine)),
                ", ".join(str(row["failure"]) for row in faulty if row["failure"] is not None)[:200],
            ]
        )  # fmt: skip
    text = [
        *table(["way", "runs", "that fail", "healthy", "that survive their fault", "steps of the failures"], ends),
        "",
    ]
    if not rows or not rows[0]["signals"] or not any(row["seed"] >= TUNING for row in rows):
        return "\n".join(text).rstrip() + "\n"
    lines = []
    for signal in SIGNALS:
        for form in FORMS:
            found = alarms(rows, signal, form, every)
            lines.append(line(f"{signal}, {form}", rows, found.__getitem__, ways, every))
    for rival in RIVALS:
        if all(row["rivals"].get(rival) is not None for row in rows):
            for kind, tuned in (("its own threshold", False), ("threshold chosen as above", True)):
                found = alarms_of(rows, rival, tuned)
                lines.append(line(f"{rival}, {kind}", rows, found.__getitem__, ways, every))
    heads = [
        "signal",
        "runs with a false alarm",
        "failures with an alarm before",
        *ways,
        "median lead in steps",
        "of the run",
    ]
    return "\n".join([*text, *table(heads, lines)]) + "\n"
