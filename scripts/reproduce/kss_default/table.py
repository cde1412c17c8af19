"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from scipy import stats

#: A run that exploded knows nothing: its loss counts as guessing (recall), or as knowing how often each byte occurs (text).
GUESSING = {"recall": math.log(16), "text-preln": 3.192, "text-rmsnorm": 3.192}
#: With a norm the loss does not explode. A text run is lost too if it ends no better than a table of byte pairs (their
#: conditional entropy in this text): then the blocks have learnt nothing of the context.
MUST_BEAT = {"text-preln": 2.317, "text-rmsnorm": 2.317}

#: The arms without KSS.
CONTROLS = ("none", "clip")


def lost(row: dict[str, Any]) -> bool:
    """By the task's loss or the task's gradient, or because nothing was learnt that pairs of bytes do not say."""
    if row["lost_by_loss"] is not None or row["lost_by_gradient"] is not None:
        return True
    return bool(row["loss"] >= MUST_BEAT.get(row["task"], math.inf))


def final(row: dict[str, Any]) -> float:
    """The task's loss over the last 100 steps; a run that ended by its loss has none and counts as guessing."""
    return float(min(row["loss"], 10.0) if row["loss"] is not None else GUESSING[row["task"]])


def share(hits: int, count: int) -> str:
    """Number and share with Clopper and Pearson's interval."""
    interval = stats.binomtest(hits, count).proportion_ci(method="exact")
    return f"{hits}/{count} = {hits / count:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def mean(values: Sequence[float]) -> str:
    """Mean with Student's interval."""
    average = sum(values) / len(values)
    if len(values) < 2:
        return f"{average:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{average:.3f} [{average - half:.3f}, {average + half:.3f}]"


Cells = dict[tuple[float, str], dict[int, dict[str, Any]]]


def tables(rows: list[dict[str, Any]]) -> str:
    """For each task a table of its runs, and what follows from it."""
    text = []
    for task in dict.fromkeys(row["task"] for row in rows):
        cells: Cells = defaultdict(dict)
        for row in rows:
            if row["task"] == task:
                cells[row["lr"], row["arm"]][row["seed"]] = row
        text += [f"## {task}", "", "| learning rate | arm | lost | exploded | final loss | accuracy |",
                 "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for (lr, arm), runs in sorted(cells.items()):
            ended = [row for row in runs.values() if row["loss"] is not None]
            exploded = sum(row["lost_by_loss"] is not None for row in runs.values())
            accuracy = mean([row["accuracy"] for row in ended]) if ended else "-"
            text.append(
                f"| {lr:g} | {arm} | {share(sum(map(lost, runs.values())), len(runs))} | {exploded} "
                f"| {mean([final(row) for row in runs.values()])} | {accuracy} |"
            )
        text += ["", *at_its_best(cells), "", *harm(cells), ""]
    return "\n".join(text)


def at_its_best(cells: Cells) -> list[str]:
    """Each arm at the learning rate where its mean final loss is lowest, minus a control at its own best, seed by seed."""
    best: dict[str, tuple[float, dict[int, dict[str, Any]]]] = {}
    for arm in sorted({arm for _, arm in cells}):
        points = {lr: runs for (lr, name), runs in cells.items() if name == arm}
        lr = min(points, key=lambda lr: sum(map(final, points[lr].values())) / len(points[lr]))
        best[arm] = lr, points[lr]
    lines = ["| arm at its best learning rate | control at its own | n | final loss minus the control's |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for arm, (lr, runs) in best.items():
        for control in [name for name in CONTROLS if name in best and name != arm]:
            other_lr, other = best[control]
            seeds = sorted(set(runs) & set(other))
            if seeds:
                differences = [final(runs[seed]) - final(other[seed]) for seed in seeds]
                lines.append(f"| {arm}, {lr:g} | {control}, {other_lr:g} | {len(seeds)} | {mean(differences)} |")
    return lines


def harm(cells: Cells) -> list[str]:
    """What KSS does to runs that a control did not lose, at the same learning rate and seed."""
    lines = ["| learning rate | not lost with | of these lost with | final loss minus the control's |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for (lr, arm), runs in sorted(cells.items()):
        for control in CONTROLS if arm not in CONTROLS else ():
            plain = cells.get((lr, control), {})
            stable = [seed for seed in plain if seed in runs and not lost(plain[seed])]
            if stable:
                hurt = sum(lost(runs[seed]) for seed in stable)
                differences = [final(runs[seed]) - final(plain[seed]) for seed in stable]
                lines.append(f"| {lr:g} | {control} | {arm}: {hurt}/{len(stable)} | {mean(differences)} |")
    return lines
