"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.reproduce.harness.intervals import Estimate, mean, paired
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.harness.rows import ok, read

from .networks import FAMILIES
from .rules import RANDOM

Row = dict[str, Any]
#: The arm that decides for a run; its outcome is that of the arm with KSS or of clipping alone.
AUTO = "auto"
#: The arm of the report: a row has both runs where "auto" says on, and none where it says off.
BOTH = "auto, both"
PILOT = Path(__file__).parent / "pilot.jsonl"
#: "auto" harms nobody in a cell if the upper end of the interval of its loss minus that of clipping is below this.
MARGIN = 0.01
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


@dataclass(frozen=True)
class Harm:
    """What ``kss="auto"`` does in one cell: a family, a schedule, a learning rate and a number of steps.

    Attributes:
        runs, on: number of runs, and of those in which KSS acts.
        clip_lost, auto_lost: of the runs in which KSS acts, those that clipping loses, and KSS.
        by_loss, by_gradient: of those that clipping loses, the ones with a loss, or else a task gradient, above the limit; the
            others have learnt too little.
        clip_loss, auto_loss: mean final loss of the runs in which KSS acts, with clipping alone and with KSS.
        minus_clipping: final loss minus that of clipping, over all runs; 0 in a run in which KSS is off.
    """

    runs: int
    on: int
    clip_lost: int
    auto_lost: int
    by_loss: int
    by_gradient: int
    clip_loss: float
    auto_loss: float
    minus_clipping: Estimate

    @property
    def verdict(self) -> str:
        """ "harmless" or "harmful" by `MARGIN`, else "undecided"; "equal" if KSS acts in no run."""
        if not self.on:
            return "equal"
        low, high = self.minus_clipping.low, self.minus_clipping.high
        return "harmless" if high < MARGIN else "harmful" if low >= MARGIN else "undecided"


#: Family, schedule, learning rate and steps -> what "auto" does there.
Harms = dict[tuple[str, str, float, int], Harm]


def harms_of(rows: list[Row]) -> Harms:
    """The cells of the report."""
    cells: dict[tuple[str, str, float, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row["family"], row["schedule"], row["lr"], row["steps"]].append(row)
    return {cell: _harm(runs) for cell, runs in sorted(cells.items())}


def _harm(rows: list[Row]) -> Harm:
    on = [row for row in rows if row["choice"]["on"]]
    clip, kss = ([{"family": row["family"]} | row["runs"][arm] for row in on] for arm in ("clip", "kss"))
    losses = [list(map(final, runs)) for runs in (clip, kss)]
    every = mean([mine - other for other, mine in zip(*losses, strict=True)] + [0.0] * (len(rows) - len(on)))
    by_loss = sum(row["exploded"] is not None for row in clip)
    by_gradient = sum(row["exploded"] is None and row.get("lost_by_gradient") is not None for row in clip)
    means = (mean(each).value for each in losses)
    return Harm(len(rows), len(on), sum(map(lost, clip)), sum(map(lost, kss)), by_loss, by_gradient, *means, every)


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """The tables of a section."""
    if any(row["arm"] == BOTH for row in rows):
        return report(rows)
    every = [*_of_pilot(rows), *rows]
    if not any(row["arm"] == RANDOM for row in rows):
        return arms_table(every)
    return f"{arms_table(every)}\n{why_table(every)}"


def _of_pilot(rows: list[Row]) -> list[Row]:
    """The runs of the pilot with clipping, and with KSS, that those of a section are compared with and that it does not have."""

    def cell(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("family", "schedule", "lr", "steps", "seed"))

    same = {cell(row) for row in rows if row["arm"] != "clip"}
    own = {(*cell(row), row["arm"]) for row in rows}
    return [
        row
        for row in read(PILOT)
        if ok(row) and row["arm"] != AUTO and cell(row) in same and (*cell(row), row["arm"]) not in own
    ]


def report(rows: list[Row]) -> str:
    """What ``kss="auto"`` does in each cell."""
    lines = []
    for (family, schedule, lr, steps), harm in harms_of(rows).items():
        both = [str(harm.clip_lost), str(harm.auto_lost), f"{harm.clip_loss:.3f}", f"{harm.auto_loss:.3f}"]
        lines.append(
            [
                family, schedule, f"{lr:g}", str(steps), f"{harm.on} of {harm.runs}", *(both if harm.on else "-" * len(both)),
                harm.minus_clipping.text(), harm.verdict,
            ]
        )  # fmt: skip
    heads = [
        "family", "schedule", "learning rate", "steps", "KSS acts", "of these clipping loses", "KSS loses",
        "their loss with clipping", "with KSS", "loss minus clipping, all runs", "verdict",
    ]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"


def arms_table(rows: list[Row]) -> str:
    """Final loss by family, schedule, learning rate and arm; minus that of its control at the same learning rate."""
    lines = []
    for (family, schedule, lr), arms in cells_of(rows).items():
        for arm, runs in arms.items():
            control = arms.get(control_of(arm) if arm != control_of(arm) else "clip")
            beside = "-" if control is None or arm == "clip" else difference(runs, control).text()
            lines.append(
                [
                    family, schedule, f"{lr:g}", arm, f"{sum(map(lost, runs.values()))} of {len(runs)}",
                    mean([final(row) for row in runs.values()]).text(), beside, acted(runs), radii(runs, 0), radii(runs, -1),
                    sizes(runs),
                ]
            )  # fmt: skip
    heads = [
        "family", "schedule", "learning rate", "arm", "lost", "final loss", "minus clipping", "steps with a push",
        "radii of the blocks at first", "at the end", "size at first before and behind block 1",
    ]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"


#: What is asked of section `why`: two arms of one cell, the first minus the second.
CONTRASTS = (
    ("KSS", "kss", "clip"),
    ("KSS minus a random push of the same size", "kss", RANDOM),
    ("KSS minus its first block alone", "kss", "kss, first block"),
    ("KSS minus its first block alone at full weight", "kss", "kss, first block at full weight"),
    ("KSS minus the other blocks alone", "kss", "kss, other blocks"),
    ("KSS, embeddings behind a norm", "kss, embedding norm", "clip, embedding norm"),
    ("KSS, scaled embeddings", "kss, embedding scale", "clip, embedding scale"),
    ("a norm behind the embeddings, without KSS", "clip, embedding norm", "clip"),
    ("scaled embeddings, without KSS", "clip, embedding scale", "clip"),
)
#: Two families that differ in the norm alone: RMSNorm first.
NORMS = (("llama", "llama, layernorm"), ("gpt2, rmsnorm", "gpt2"))


def why_table(rows: list[Row]) -> str:
    """Differences of final losses, paired by seed, and how they differ between two norms, or two kinds of embeddings."""
    cells = cells_of(rows)
    lines = []
    for (family, _, lr), arms in cells.items():
        for title, one, other in CONTRASTS:
            if one in arms and other in arms:
                lines.append([family, f"{lr:g}", title, difference(arms[one], arms[other]).text()])
        for embedding in ("norm", "scale"):
            small, large = gains(arms), gains(arms, f", embedding {embedding}")
            if large:
                lines.append(
                    [family, f"{lr:g}", f"KSS, minus KSS with embedding {embedding}", paired(small, large).text()]
                )
    for rms, layer in NORMS:
        for (family, schedule, lr), arms in cells.items():
            if family == rms and (other := cells.get((layer, schedule, lr))) is not None:
                both = paired(gains(arms), gains(other))
                lines.append([rms, f"{lr:g}", f"KSS, minus KSS with LayerNorm ({layer})", both.text()])
    return "\n".join(table(["family", "learning rate", "difference", "final loss"], lines)) + "\n"


def gains(arms: dict[str, dict[int, Row]], embedding: str = "") -> dict[int, float]:
    """Seed -> final loss with KSS minus that of clipping with the same embeddings."""
    kss, clip = arms.get(f"kss{embedding}", {}), arms.get(f"clip{embedding}", {})
    return {seed: final(kss[seed]) - final(clip[seed]) for seed in kss.keys() & clip.keys()}


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


def sizes(runs: dict[int, Row]) -> str:
    """Mean over the runs of the root mean square before and behind the first block, at the first record."""
    found = [next(iter(row["record"].values()))[0] for row in runs.values() if row["record"]]
    return ", ".join(f"{sum(run[place] for run in found) / len(found):.2g}" for place in (1, 2)) if found else "-"


def acted(runs: dict[int, Row]) -> str:
    """Mean share of the steps in which KSS pushed; rows from before this was recorded have none."""
    found = [row["acted"] / row["steps"] for row in runs.values() if row.get("kss") and "acted" in row]
    return f"{sum(found) / len(found):.0%}" if found else "-"
