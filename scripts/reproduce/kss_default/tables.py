"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from scripts.reproduce.harness.intervals import mean, paired, share
from scripts.reproduce.harness.markdown import table

Row = dict[str, Any]
#: Learning rate and arm -> seed -> row.
Cells = dict[tuple[float, str], dict[int, Row]]

#: A run that exploded knows nothing: its loss counts as guessing (recall), or as knowing how often each byte occurs (text).
GUESSING = {"recall": math.log(16), "text-preln": 3.192, "text-rmsnorm": 3.192}
#: With a norm the loss does not explode. A text run is lost too if it ends no better than a table of byte pairs (their
#: conditional entropy in this text): then the blocks have learnt nothing of the context.
MUST_BEAT = {"text-preln": 2.317, "text-rmsnorm": 2.317}

#: The arms without KSS.
CONTROLS = ("none", "clip")


def lost(row: Row) -> bool:
    """By the task's loss or the task's gradient, or because nothing was learnt that pairs of bytes do not say."""
    if row["lost_by_loss"] is not None or row["lost_by_gradient"] is not None:
        return True
    return bool(row["loss"] >= MUST_BEAT.get(row["task"], math.inf))


def by_gradient_alone(row: Row) -> bool:
    """Lost by its gradient; its loss stays below 50 to the end, and it may learn."""
    return row["lost_by_loss"] is None and row["lost_by_gradient"] is not None


def final(row: Row) -> float:
    """The task's loss over the last 100 steps; a run that ended by its loss has none and counts as guessing."""
    return float(min(row["loss"], 10.0) if row["loss"] is not None else GUESSING[row["task"]])


def finals(runs: dict[int, Row]) -> dict[int, float]:
    """Seed -> final loss."""
    return {seed: final(row) for seed, row in runs.items()}


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """For each task a table of its runs, and what follows from it."""
    text = []
    for task in dict.fromkeys(row["task"] for row in rows):
        cells: Cells = defaultdict(dict)
        for row in rows:
            if row["task"] == task:
                cells[row["lr"], row["arm"]][row["seed"]] = row
        text += [f"## {task}", "", *outcomes(cells), "", *at_its_best(cells), "", *harm(cells), ""]
    return "\n".join(text) + "\n"


def outcomes(cells: Cells) -> list[str]:
    """How the runs ended, for each learning rate and arm."""
    lines = []
    for (lr, arm), runs in sorted(cells.items()):
        hits = sum(map(lost, runs.values()))
        exploded = sum(row["lost_by_loss"] is not None for row in runs.values())
        accuracy = mean([row["accuracy"] for row in runs.values() if row["loss"] is not None])
        among = f"{hits}/{len(runs)} = {share(hits, len(runs)).text(2)}"
        lines.append((f"{lr:g}", arm, among, exploded, mean(list(finals(runs).values())).text(), accuracy.text()))
    return table(["learning rate", "arm", "lost", "exploded", "final loss", "accuracy"], lines)


def at_its_best(cells: Cells) -> list[str]:
    """Each arm at the learning rate where its mean final loss is lowest, minus a control at its own best, seed by seed."""
    best: dict[str, tuple[float, dict[int, Row]]] = {}
    for arm in sorted({arm for _, arm in cells}):
        points = {lr: runs for (lr, name), runs in cells.items() if name == arm}
        lr = min(points, key=lambda lr: mean(list(finals(points[lr]).values())).value)
        best[arm] = lr, points[lr]
    lines = []
    for arm, (lr, runs) in best.items():
        for control in [name for name in CONTROLS if name in best and name != arm]:
            other_lr, other = best[control]
            difference = paired(finals(runs), finals(other))
            if difference.count:
                lines.append((f"{arm}, {lr:g}", f"{control}, {other_lr:g}", difference.count, difference.text()))
    return table(["arm at its best learning rate", "control at its own", "n", "final loss minus the control's"], lines)


def harm(cells: Cells) -> list[str]:
    """What KSS does to runs that a control did not lose, at the same learning rate and seed."""
    lines = []
    for (lr, arm), runs in sorted(cells.items()):
        for control in CONTROLS if arm not in CONTROLS else ():
            plain = cells.get((lr, control), {})
            stable = {seed: row for seed, row in plain.items() if seed in runs and not lost(row)}
            if stable:
                hurt = sum(lost(runs[seed]) for seed in stable)
                difference = paired(finals(runs), finals(stable))
                lines.append((f"{lr:g}", control, f"{arm}: {hurt}/{len(stable)}", difference.text()))
    return table(["learning rate", "not lost with", "of these lost with", "final loss minus the control's"], lines)
