"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from scripts.reproduce.harness.intervals import Estimate, mean, paired
from scripts.reproduce.harness.markdown import table

from .networks import FAMILIES

Row = dict[str, Any]
#: The arm that decides for a run; its outcome is that of the arm with KSS or of clipping alone.
AUTO = "auto"
#: Family, schedule and learning rate -> arm -> seed -> row.
Cells = dict[tuple[str, str, float], dict[str, dict[int, Row]]]


def lost(row: Row) -> bool:
    """Exploded, had a task gradient above the limit, or has learnt nothing that needs the context: the rule of `kss_default`."""
    if row["exploded"] is not None or row.get("lost_by_gradient") is not None:
        return True
    return bool(final(row) >= FAMILIES[row["family"]].task.must_beat)


def final(row: Row) -> float:
    """The loss on held-out data, or over the last steps if their data was new; at most that of guessing, as after an explosion."""
    guessing = FAMILIES[row["family"]].task.guessing
    if row["exploded"] is not None:
        return guessing
    held_out = row.get("held_out")
    return min(float(row["loss"] if held_out is None else held_out), guessing)


def cells_of(rows: list[Row]) -> Cells:
    """The rows by cell and arm."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cells[row["family"], row["schedule"], row["lr"]][row["arm"]][row["seed"]] = row
    for arms in cells.values():
        outcomes = {}
        for seed, row in arms.pop(AUTO, {}).items():
            taken = arms.get("kss" if row["choice"]["on"] else "clip", {})
            if seed in taken:
                outcomes[seed] = taken[seed] | {"choice": row["choice"]}
        if outcomes:
            arms[AUTO] = outcomes
    return dict(sorted(cells.items()))


def difference(runs: dict[int, Row], control: dict[int, Row]) -> Estimate:
    """Final loss minus that of the control, paired by seed."""
    return paired(*({seed: final(row) for seed, row in each.items()} for each in (runs, control)))


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """Final loss by family, schedule, learning rate and arm; minus that of its control at the same learning rate."""
    lines = []
    for (family, schedule, lr), arms in cells_of(rows).items():
        for arm, runs in arms.items():
            control = arms.get(control_of(arm) if arm != control_of(arm) else "clip")
            beside = "-" if control is None or arm == "clip" else difference(runs, control).text()
            lines.append(
                [
                    family, schedule, f"{lr:g}", arm, f"{sum(map(lost, runs.values()))} of {len(runs)}",
                    mean([final(row) for row in runs.values()]).text(), beside, radii(runs, 0), radii(runs, -1),
                ]
            )  # fmt: skip
    heads = [
        "family", "schedule", "learning rate", "arm", "lost", "final loss", "minus clipping",
        "radii of the blocks at first", "at the end",
    ]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"


def control_of(arm: str) -> str:
    """Clipping with the same embeddings."""
    _, comma, rest = arm.partition(", embedding ")
    return f"clip, embedding {rest}" if comma else "clip"


def radii(runs: dict[int, Row], place: int) -> str:
    """Mean spectral radius of each block at the first or the last record."""
    found = [list(row["record"].values())[place] for row in runs.values() if row["record"]]
    if not found:
        return "-"
    return ", ".join(f"{sum(run[block][0] for run in found) / len(found):.3g}" for block in range(len(found[0])))
