"""Claims of our own: the default of KSS, and ``kss="auto"``."""

from __future__ import annotations

import json
import statistics

from scripts.reproduce.evidence.claim import ROOT, Claim, Finding, Paper, Verdict, reproduce, rows_of
from scripts.reproduce.evidence.rksp import BENCH, HIGHEST, OUR_ARM, lost_of, runs_of
from scripts.reproduce.harness.intervals import fewer, mean, paired
from scripts.reproduce.kss_default.tables import by_gradient_alone, finals, lost
from scripts.reproduce.kss_families.tables import harms_of


def _rescue() -> Finding:
    parts, better, exploded, by_gradient = [], 0, 0, 0
    for task in HIGHEST:
        (mine, of), (clipped, _) = counts = lost_of(task, OUR_ARM), lost_of(task, "clip")
        p = fewer(*counts)
        better += p < 0.05
        parts.append(f"{task} {mine} and {clipped} of {of} (one-sided p = {p:.2g})")
        gone = [row for row in runs_of(task, HIGHEST[task], "clip") if lost(row)]
        exploded += sum(row["lost_by_loss"] is not None for row in gone)
        by_gradient += sum(map(by_gradient_alone, gone))
    verdict: Verdict = "held" if better == len(HIGHEST) else "partly" if better else "not"
    return Finding(
        verdict,
        f"Lost with it and with clipping alone, at the highest rate: {', '.join(parts)}. Of those that clipping loses {exploded} "
        f"are lost by their loss, {by_gradient} by their gradient norm; the others end no better than a table of byte pairs.",
    )


def rates_of(task: str) -> list[float]:
    """The learning rates of a task of `kss_default`."""
    return sorted({row["lr"] for row in rows_of("kss_default") if row["task"] == task})


def _loss() -> Finding:
    parts, ends = [], []
    for task in HIGHEST:
        best = []
        for arm in (OUR_ARM, "clip"):
            points = [finals({row["seed"]: row for row in runs_of(task, lr, arm)}) for lr in rates_of(task)]
            best.append(min((each for each in points if each), key=lambda each: mean(list(each.values())).value))
        difference = paired(*best)
        ends.append(difference)
        parts.append(f"{task} {difference.value:+.3f} [{difference.low:.3f}, {difference.high:.3f}]")
    held = all(one.high < 0.01 for one in ends)
    verdict: Verdict = "held" if held else "partly" if any(one.high < 0.01 for one in ends) else "not"
    return Finding(verdict, f"Final loss minus that of clipping, each at its best learning rate: {', '.join(parts)}.")


def _cost() -> Finding:
    rows = json.loads((ROOT / BENCH).read_text(encoding="utf-8"))["rows"]
    added = {row["d"]: row["KSS, default, paired"]["overhead"] for row in rows}
    wide = [row["KSS, default, paired"]["overhead"] for row in rows if row["d"] >= 512]
    small = ", ".join(f"{added[d]:.0%} at width {d}" for d in sorted(added) if d < 512)
    verdict: Verdict = "held" if max(wide) <= 0.05 else "partly" if statistics.median(wide) <= 0.05 else "not"
    return Finding(
        verdict, f"{statistics.median(wide):.1%} in the median from width 512 on, at most {max(wide):.1%}; {small}."
    )


def _auto_harms() -> Finding:
    harms = harms_of(rows_of("kss_families"))
    verdicts = [harm.verdict for harm in harms.values()]
    good = sum(one in ("equal", "harmless") for one in verdicts)
    verdict: Verdict = "held" if good == len(harms) else "not" if "harmful" in verdicts else "partly"
    (family, schedule, lr, _), worst = max(harms.items(), key=lambda item: item[1].minus_clipping.high)
    acts = sum(harm.on > 0 for harm in harms.values())
    return Finding(
        verdict,
        f"In {good} of {len(harms)} cells (a family at a learning rate and with a schedule) the loss is equal, or its interval "
        f"ends below +.01. KSS acts in {acts} of the cells. "
        f"The highest end of an interval is {worst.minus_clipping.high:+.3f} ({family}, {schedule}, {lr:g}).",
    )


def _auto_rescues() -> Finding:
    cells = {cell: harm for cell, harm in harms_of(rows_of("kss_families")).items() if harm.clip_lost >= 4}
    kept = [fewer((harm.auto_lost, harm.on), (harm.clip_lost, harm.on)) < 0.05 for harm in cells.values()]
    verdict: Verdict = "held" if kept and all(kept) else "partly" if any(kept) else "not"
    text = "; ".join(
        f"{family} ({schedule}) at {lr:g} {harm.clip_lost} and {harm.auto_lost} of {harm.on} (of the first {harm.by_loss} by their "
        f"loss, {harm.by_gradient} by their gradient norm)"
        for (family, schedule, lr, _), harm in cells.items()
    )
    return Finding(
        verdict, f'Lost with clipping and with `kss="auto"`, of the runs in which KSS acts: {text or "none"}.'
    )


OURS = Paper(
    "Our default of KSS",
    "It is not the paper's: it acts in every step, on the gradient at the states, by a one-sided penalty that keeps the "
    "means",
    (
        Claim(
            "kss_default", "It keeps runs that clipping loses.",
            "held: fewer runs are lost on all three tasks (Fisher's exact test, one-sided, p < .05); partly: on one or two",
            judge=_rescue, **reproduce("kss_default"),
        ),
        Claim(
            "kss_default", "It ends no worse than clipping.",
            "held: the interval of the paired difference ends below .01 on all three tasks; partly: on one or two", judge=_loss,
            **reproduce("kss_default"),
        ),
        Claim(
            "kss_families", "`kss=\"auto\"` harms no family: the loss is no higher than with clipping.",
            "held: in every cell KSS acts in no run, or the 95% interval of the paired difference ends below .01; not: it begins "
            "at .01 or above in a cell",
            judge=_auto_harms, **reproduce("kss_families"),
        ),
        Claim(
            "kss_families", "`kss=\"auto\"` keeps runs that clipping loses.",
            "held: in every cell in which clipping loses four runs or more fewer are lost (Fisher's exact test, one-sided, p < "
            ".05); partly: in one",
            judge=_auto_rescues, **reproduce("kss_families"),
        ),
        Claim(
            "cost", "It costs at most 5% of a step from width 512 on.", "held: at every size; partly: in the median",
            judge=_cost, command="python scripts/bench/training.py", rows=(BENCH,),
        ),
    ),
    "Networks and learning rates at which KSS acts ([kss_families](../../scripts/reproduce/kss_families/README.md)):\n\n"
    "![Final loss with kss=\"auto\" minus that of clipping, by network and learning rate, with the runs that each loses]"
    "(figures/kss_families.svg)",
)  # fmt: skip
