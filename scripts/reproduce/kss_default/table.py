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


def tables(rows: list[dict[str, Any]]) -> str:
    """One table a task, and what follows from it."""
    text = []
    for task in dict.fromkeys(row["task"] for row in rows):
        cells: dict[tuple[str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if row["task"] == task:
                cells[row["arm"], row["lr"]][row["seed"]] = row
        text += [f"## {task}", "", "| arm | learning rate | lost | lost by loss alone | final loss | accuracy | ms a step |",
                 "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for (arm, lr), runs in sorted(cells.items()):
            ended = [row for row in runs.values() if row["loss"] is not None]
            by_loss = sum(row["lost_by_loss"] is not None for row in runs.values())
            accuracy = mean([row["accuracy"] for row in ended]) if ended else "-"
            pace = mean_pace(ended)
            text.append(
                f"| {arm} | {lr:g} | {share(sum(map(lost, runs.values())), len(runs))} | {by_loss}/{len(runs)} "
                f"| {mean([final(row) for row in runs.values()])} | {accuracy} | {pace} |"
            )
        text += ["", *verdicts(task, cells), ""]
    return "\n".join(text)


def mean_pace(rows: list[dict[str, Any]]) -> str:
    """Milliseconds a step; with other work on the machine it is no measure of cost."""
    return f"{sum(1000 * row['seconds'] / row['steps'] for row in rows) / len(rows):.0f}" if rows else "-"


def verdicts(task: str, cells: dict[tuple[str, float], dict[int, dict[str, Any]]]) -> list[str]:
    """Each arm at the learning rate where its mean final loss is lowest, against the control at its own best, by seed."""
    best = {}
    for arm in dict.fromkeys(arm for arm, _ in cells):
        points = {lr: runs for (name, lr), runs in cells.items() if name == arm}
        lr = min(points, key=lambda lr: sum(map(final, points[lr].values())) / len(points[lr]))
        best[arm] = lr, points[lr]
    if "none" not in best:
        return []
    lines = []
    for arm, (lr, runs) in best.items():
        for control in [name for name in ("none", "clip") if name in best and name != arm]:
            other_lr, other = best[control]
            seeds = sorted(set(runs) & set(other))
            if seeds:
                differences = [final(runs[seed]) - final(other[seed]) for seed in seeds]
                lines.append(
                    f"- {arm} at {lr:g} minus {control} at {other_lr:g}, final loss by seed (n = {len(seeds)}): {mean(differences)}"
                )
    for (arm, lr), runs in sorted(cells.items()):
        plain = cells.get(("none", lr), {})
        stable = [seed for seed in plain if seed in runs and not lost(plain[seed])]
        if arm != "none" and stable:
            worse = [final(runs[seed]) - final(plain[seed]) for seed in stable]
            harmed = sum(lost(runs[seed]) for seed in stable)
            lines.append(
                f"- {lr:g}: of {len(stable)} runs stable without control, {harmed} lost with {arm}; final loss minus control's "
                f"{mean(worse)}"
            )
    return lines
