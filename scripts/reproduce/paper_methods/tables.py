"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from scipy.stats import fisher_exact

from scripts.reproduce.harness.intervals import Estimate, mean, paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_default.tables import GUESSING, by_gradient_alone

Row = dict[str, Any]
#: A run whose final loss is no further below that of guessing has learnt nothing.
LEARNT = 0.1
#: Share of right answers of a network that guesses: one of sixteen symbols.
CHANCE = 1 / 16
#: Comes before the name of an optimizer to which KSS is added.
ADDED = "KSS, paper .15 + "
#: Comes after it if its warm-up is longer.
LONGER = ", long warm-up"


def lost(row: Row) -> bool:
    """By the task's loss or the task's gradient, as in the paper: a loss above 50, a gradient norm above 500, or not finite."""
    return row["lost_by_loss"] is not None or row["lost_by_gradient"] is not None


def final(row: Row) -> float:
    """The loss over the last 100 steps; a run that ended by its loss, or above it, counts as guessing."""
    guessing = GUESSING["recall"]
    return guessing if row["loss"] is None else min(float(row["loss"]), guessing)


def useless(row: Row) -> bool:
    """Lost, or kept without having learnt anything."""
    return lost(row) or final(row) > GUESSING["recall"] - LEARNT


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
    if len({row["lr"] for row in rows}) > 2:
        return "\n".join(_by_rate(rows)) + "\n"
    text: list[str] = []
    for setting in settings_of(rows):
        text += [f"## Learning rate {setting.name}", "", *_outcomes(setting.runs), ""]
    return "\n".join(text).rstrip() + "\n"


def _outcomes(runs: dict[str, dict[int, Row]]) -> list[str]:
    control = runs.get("plain", {})
    lines = []
    for name, mine in runs.items():
        each = list(mine.values())
        beside = paired(*({seed: final(row) for seed, row in some.items()} for some in (mine, control)))
        own = name == "plain" or not mine.keys() & control.keys()
        lines.append(
            [
                name, *_counts(each), "-" if own else _p(mine, control), mean(list(map(final, each))).text(),
                "-" if own else beside.text(), accuracy(each).text(), *(_mass(each, place) for place in range(3)),
            ]
        )  # fmt: skip
    heads = [
        "method", *_COUNTS, "p against plain", "final loss (2.773 at most)", "minus plain", _ACCURACY,
        "near-unit mass at first", "at step 25", "at the end, or before the loss",
    ]  # fmt: skip
    return [*table(heads, lines), *_left_out([row for mine in runs.values() for row in mine.values()])]


_COUNTS = ("lost", "share", "of these by the gradient alone", "lost, or learnt nothing")
_ACCURACY = "accuracy (a run whose loss explodes guesses)"


def _counts(rows: list[Row]) -> list[str]:
    count = sum(map(lost, rows))
    alone = sum(map(by_gradient_alone, rows))
    return [f"{count} of {len(rows)}", share(count, len(rows)).text(2), str(alone), str(sum(map(useless, rows)))]


def accuracy(rows: list[Row]) -> Estimate:
    """Over the last 100 steps; a run that ended by its loss counts as guessing."""
    return mean([CHANCE if row["accuracy"] is None else row["accuracy"] for row in rows])


def _left_out(rows: list[Row]) -> list[str]:
    count = sum(bool(row.get("skipped")) and row["lost_by_loss"] is None for row in rows)
    return ["", f"In {count} of these runs KSS left out a layer at some step."] if count else []


def _by_rate(rows: list[Row]) -> list[str]:
    """Each method at each learning rate of its own; with KSS or a longer warm-up beside without."""
    cells: dict[tuple[str, float, bool], dict[int, Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["lr"], row["clip"] is not None), {})[row["seed"]] = row
    lines = []
    for (method, lr, clipped), mine in sorted(cells.items()):
        alone = method.removeprefix(ADDED).removesuffix(LONGER)
        control = cells.get((alone, lr, clipped), {}) if alone != method else {}
        lines.append(
            [
                method, "yes" if clipped else "no", f"{lr:g}", *_counts(list(mine.values())), _p(mine, control) if control else "-",
                mean(list(map(final, mine.values()))).text(), accuracy(list(mine.values())).text(),
            ]
        )  # fmt: skip
    heads = [
        "method", "clipping at 1", "learning rate", *_COUNTS, "p against the optimizer alone", "final loss", _ACCURACY,
    ]  # fmt: skip
    return table(heads, lines)


def _p(mine: dict[int, Row], control: dict[int, Row]) -> str:
    """Two-sided p of Fisher's exact test over the seeds of both: as many runs are lost in either."""
    both = mine.keys() & control.keys()
    one, other = (sum(lost(each[seed]) for seed in both) for each in (mine, control))
    return f"{fisher_exact([[one, len(both) - one], [other, len(both) - other]]).pvalue:.2g}"


def _mass(rows: list[Row], place: int) -> str:
    values = [row["near_unit_mass"][place] for row in rows if row["near_unit_mass"][place] is not None]
    return f"{statistics.fmean(values):.2f}" if values else "-"


def _costs(rows: list[Row]) -> list[str]:
    runs: dict[str, list[float]] = {}
    for row in rows:
        name = row["method"] if row["plain_clip"] else "clipping at 1"
        runs.setdefault(name, []).append(row["ratio"] - 1)
    lines = [
        [name, f"{statistics.median(found):+.0%}", ", ".join(f"{one:+.0%}" for one in found)]
        for name, found in runs.items()
    ]
    return table(["method", "adds to a step", "by run"], lines)
