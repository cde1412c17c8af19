"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from scipy.stats import fisher_exact

from scripts.reproduce.harness.intervals import mean, paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_default.tables import GUESSING

Row = dict[str, Any]
#: Ends the name of an optimizer whose learning rate is that of the cell.
OWN_RATE = "its own rate"


def lost(row: Row) -> bool:
    """By the task's loss or the task's gradient, as in the paper: a loss above 50, a gradient norm above 500, or not finite."""
    return row["lost_by_loss"] is not None or row["lost_by_gradient"] is not None


def final(row: Row) -> float:
    """The loss over the last 100 steps; a run that ended by its loss, or above it, counts as guessing."""
    guessing = GUESSING["recall"]
    return guessing if row["loss"] is None else min(float(row["loss"]), guessing)


@dataclass(frozen=True)
class Setting:
    """A learning rate, and what was run there.

    Attributes:
        lr: of AdamW.
        clip: limit of the gradient norm of every method; ``None`` without clipping.
        runs: method -> seed -> row. Plain runs that clip at another limit are the method "clipping at" that limit.
    """

    lr: float
    clip: float | None
    runs: dict[str, dict[int, Row]]

    @property
    def name(self) -> str:
        """For a heading."""
        return f"{self.lr:g} {'without clipping' if self.clip is None else f'with clipping at {self.clip:g}'}"


def settings_of(rows: list[Row]) -> list[Setting]:
    """The settings of a section, by learning rate."""
    found = []
    for lr in sorted({row["lr"] for row in rows}):
        mine = [row for row in rows if row["lr"] == lr]
        clip = Counter(row["clip"] for row in mine).most_common(1)[0][0]
        runs: dict[str, dict[int, Row]] = {}
        for row in mine:
            plain = "clipping at " if row["method"] == "plain" else f"{row['method']}, clipping at "
            name = row["method"] if row["clip"] == clip else f"{plain}{row['clip']}"
            runs.setdefault(name, {})[row["seed"]] = row
        found.append(Setting(lr, clip, runs))
    return found


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """By learning rate: runs lost, final loss and accuracy of each method."""
    if not rows:
        return "No rows yet.\n"
    if "ratio" in rows[0]:
        return "\n".join(_costs(rows)) + "\n"
    if any(row["method"].endswith(OWN_RATE) for row in rows):
        return "\n".join(_candidates(rows)) + "\n"
    text: list[str] = []
    for setting in settings_of(rows):
        text += [f"## Learning rate {setting.name}", "", *_outcomes(setting.runs), ""]
    return "\n".join(text).rstrip() + "\n"


def _outcomes(runs: dict[str, dict[int, Row]]) -> list[str]:
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


def _candidates(rows: list[Row]) -> list[str]:
    """What the learning rates and weights of the report are chosen from."""
    cells: dict[tuple[str, bool, float], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["clip"] is not None, row["lr"]), []).append(row)
    lines = [
        [
            method, "yes" if clipped else "no", f"{lr:g}", f"{sum(map(lost, mine))} of {len(mine)}",
            mean(list(map(final, mine))).text(),
        ]
        for (method, clipped, lr), mine in sorted(cells.items())
    ]  # fmt: skip
    return table(["method", "clipping at 1", "learning rate", "lost", "final loss"], lines)


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
