"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from typing import Any

from scipy.stats import fisher_exact

from scripts.reproduce.harness.intervals import mean, paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_default.tables import GUESSING

Row = dict[str, Any]


def lost(row: Row) -> bool:
    """By the task's loss or the task's gradient, as in the paper: a loss above 50, a gradient norm above 500, or not finite."""
    return row["lost_by_loss"] is not None or row["lost_by_gradient"] is not None


def final(row: Row) -> float:
    """The loss over the last 100 steps; a run that ended by its loss, or above it, counts as guessing."""
    guessing = GUESSING["recall"]
    return guessing if row["loss"] is None else min(float(row["loss"]), guessing)


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """By clipping and learning rate: runs lost, final loss and accuracy of each method."""
    if not rows:
        return "No rows yet.\n"
    if "ratio" in rows[0]:
        return "\n".join(_costs(rows)) + "\n"
    text: list[str] = []
    for lr, clipped in sorted({(row["lr"], row["clip"] is not None) for row in rows}):
        mine = [row for row in rows if (row["lr"], row["clip"] is not None) == (lr, clipped)]
        # Plain clipping at another limit is a line of this table, and plain without clipping the control of the other.
        text += [f"## Learning rate {lr:g}, {'with' if clipped else 'without'} clipping", "", *_outcomes(mine), ""]
    return "\n".join(text).rstrip() + "\n"


def _outcomes(rows: list[Row]) -> list[str]:
    runs: dict[str, dict[int, Row]] = {}
    for row in rows:
        name = row["method"] if row["clip"] in (None, 1.0) else f"{row['method']}, clipping at {row['clip']:g}"
        runs.setdefault(name, {})[row["seed"]] = row
    control = runs.get("plain", {})
    lines = []
    for name, mine in runs.items():
        both = [seed for seed in mine if seed in control]
        counts = [sum(lost(each[seed]) for seed in both) for each in (mine, control)]
        count = sum(map(lost, mine.values()))
        ended = [row["accuracy"] for row in mine.values() if row["accuracy"] is not None]
        beside = paired(*({seed: final(row) for seed, row in each.items()} for each in (mine, control)))
        lines.append(
            [
                name, f"{count} of {len(mine)}", f"{share(count, len(mine)).text(2)}",
                "-" if name == "plain" or not both else f"{_fisher(*counts, len(both)):.2g}",
                mean([final(row) for row in mine.values()]).text(),
                "-" if name == "plain" or not both else beside.text(),
                mean(ended).text() if ended else "-",
                *(_mass(list(mine.values()), place) for place in (0, 1)),
            ]
        )  # fmt: skip
    return table(
        [
            "method", "lost", "share", "p against plain", "final loss", "minus plain", "accuracy of those that end",
            "near-unit mass at first", "at the end",
        ],
        lines,
    )  # fmt: skip


def _fisher(one: int, other: int, of: int) -> float:
    """Two-sided p of Fisher's exact test: as many of ``of`` runs are lost in either."""
    return float(fisher_exact([[one, of - one], [other, of - other]]).pvalue)


def _mass(rows: list[Row], place: int) -> str:
    values = [row["near_unit_mass"][place] for row in rows if row["near_unit_mass"][place] is not None]
    return f"{statistics.fmean(values):.2f}" if values else "-"


def _costs(rows: list[Row]) -> list[str]:
    runs: dict[str, list[float]] = {}
    for row in rows:
        runs.setdefault(row["method"], []).append(row["ratio"] - 1)
    lines = [
        [name, f"{statistics.median(found):+.0%}", ", ".join(f"{one:+.0%}" for one in found)]
        for name, found in runs.items()
    ]
    return table(["method", "adds to a step", "by run"], lines)
