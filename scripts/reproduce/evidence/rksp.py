"""Claims of arXiv:2602.22988: Residual Koopman Spectral Profiling, and the spectral regulariser KSS."""

from __future__ import annotations

import json
from typing import Any

import numpy
from sklearn.metrics import roc_auc_score

from hf_rksp.metrics.bins import calibration_error
from scripts.reproduce.evidence import tables, zoo
from scripts.reproduce.evidence.claim import ROOT, Claim, Finding, Paper, Verdict, reproduce, rows_of
from scripts.reproduce.harness.intervals import Estimate, fewer
from scripts.reproduce.kss_default.tables import lost
from scripts.reproduce.paper_methods.tables import accuracy
from scripts.reproduce.risk.dataset import case_of
from scripts.reproduce.risk.figures import pooled

BENCH = "scripts/bench/training.json"
_ZOO = {"command": "rksp zoo render", "rows": ("zoo_reports/README.md", "zoo_reports/comparison.md")}
#: Of `kss_default`, by task: the learning rate that is 2.5 times the highest at which no tuning run without control is lost.
HIGHEST = {"recall": 0.0025, "text-preln": 0.005, "text-rmsnorm": 0.02}
#: The task without a norm, which is the paper's.
_NO_NORM = "recall"
OUR_ARM, _PAPERS = "kss + clip", "paper + clip"


def runs_of(task: str, lr: float, arm: str) -> list[dict[str, Any]]:
    """Of `kss_default`."""
    return [row for row in rows_of("kss_default") if (row["task"], row["lr"], row["arm"]) == (task, lr, arm)]


def _values() -> Finding:
    agreeing, comparable = zoo.agreement()
    verdict: Verdict = "held" if agreeing >= 0.9 * comparable else "partly" if agreeing >= 0.5 * comparable else "not"
    return Finding(verdict, f"{agreeing} of {comparable} values agree with that of our model of the best fitting size.")


def _depth() -> Finding:
    counts = zoo.depth_counts()
    names = {"initialised": "with random weights", "trained": "trained here", "pretrained": "pretrained"}
    each = ", ".join(f"{up} of {all_} {names[weights]}" for weights, (up, all_) in counts.items())
    return Finding(
        "not tested",
        "Neither model of the paper (LLaMA-2, GPT-2 as published) could be measured. The ratio increases with depth in "
        f"{each}.",
    )


def _experts() -> Finding:
    found = zoo.trend("near_unit_mass", "experts")
    down = sum(result.ours[0] > result.ours[-1] for result in found)
    values = "; ".join(f"{result.size}: {', '.join(f'{value:.2f}' for value in result.ours)}" for result in found)
    verdict: Verdict = "held" if found and down == len(found) else "partly" if down else "not"
    return Finding(verdict, f"Near-unit mass with 1, 2, 4 experts and random weights: {values}.")


def _auroc() -> Finding:
    cases = [case_of(row) for row in rows_of("risk") if row.get("part") == "random"]
    own, lost_, exploded = pooled(cases)
    values = [case.numbers["near_unit_mass"] for case in own]
    of_explosions, of_lost = (roc_auc_score(label, values) for label in (exploded, lost_))
    verdict: Verdict = "held" if of_lost >= 0.95 else "partly" if max(of_lost, of_explosions) >= 0.8 else "not"
    bare = numpy.array([case.family == "none" for case in own])
    where = "; ".join(
        f"{exploded[each].sum()} of {each.sum()} {how}" for each, how in ((bare, "without a norm"), (~bare, "with one"))
    )
    return Finding(
        verdict,
        f"AUROC {of_explosions:.2f} for runs that explode ({where}) and {of_lost:.2f} for runs that are lost in any way "
        f"({len(own)} configurations at one learning rate). The mass is the same at every learning rate, so it cannot say at "
        "which one a network fails.",
    )


def _calibration() -> Finding:
    cases = [case_of(row) for row in rows_of("risk") if row.get("part") == "random"]
    own, lost_, exploded = pooled(cases)
    values = numpy.array([case.numbers["near_unit_mass"] for case in own])
    errors = [calibration_error(values, label, numpy.ones(len(own))) for label in (exploded, lost_)]
    verdict: Verdict = "held" if min(errors) >= 0.1 else "partly" if max(errors) >= 0.1 else "not"
    return Finding(
        verdict,
        f"Calibration error {errors[0]:.2f} for runs that explode and {errors[1]:.2f} for runs that are lost in any way "
        f"({len(own)} configurations at one learning rate). The mean mass is {values.mean():.2f}, the shares are "
        f"{exploded.mean():.2f} and {lost_.mean():.2f}. `rksp risk` gives a probability that is fitted; its error on runs "
        "that it has not seen is in [risk](../../scripts/reproduce/risk/README.md).",
    )


def lost_of(task: str, arm: str) -> tuple[int, int]:
    """Runs lost at the rate of `HIGHEST`, and runs."""
    runs = runs_of(task, HIGHEST[task], arm)
    return sum(map(lost, runs)), len(runs)


def _rescue() -> Finding:
    found = {task: (lost_of(task, _PAPERS), lost_of(task, "clip")) for task in HIGHEST}
    better = [fewer(*found[_NO_NORM]) < 0.05]
    rates = [(HIGHEST[_NO_NORM], *found[_NO_NORM])]
    if more := tables.clipped():
        setting, *both = more
        better.append(tables.beats(*both))
        rates.append((setting.lr, *map(tables.counts, both)))
    told = "; ".join(f"at {lr:g} {one[0]} and {other[0]} of {one[1]}" for lr, one, other in rates)
    others = ", ".join(f"{task} {one[0]} and {two[0]}" for task, (one, two) in found.items() if task != _NO_NORM)
    return Finding(
        "held" if all(better) else "partly" if any(better) else "not",
        f"Lost with the published schedule and clipping, and with clipping alone, without a norm: {told}. With a norm: {others}.",
    )


def _accuracy() -> Finding:
    def of(arm: str) -> Estimate:
        return accuracy(runs_of(_NO_NORM, HIGHEST[_NO_NORM], arm))

    pairs = [(HIGHEST[_NO_NORM], of(_PAPERS), of("clip"))]
    if more := tables.clipped():
        setting, *both = more
        pairs.append((setting.lr, *(accuracy(list(runs.values())) for runs in both)))
    apart = all(paper.low > clip.high for _, paper, clip in pairs)
    verdict: Verdict = (
        "held" if apart else "partly" if all(paper.value > clip.value for _, paper, clip in pairs) else "not"
    )
    told = "; ".join(f"at {lr:g} {paper.text()} and {clip.text()}" for lr, paper, clip in pairs)
    return Finding(
        verdict,
        f"Accuracy of recall without a norm with the published schedule and clipping, and with clipping alone (a run that exploded "
        f"counts as guessing): {told}. With our default and clipping at {HIGHEST[_NO_NORM]:g}: {of(OUR_ARM).text()}.",
    )


def _overhead() -> Finding:
    rows = json.loads((ROOT / BENCH).read_text(encoding="utf-8"))["rows"]
    added = [row["KSS, paper"]["mean"] / row["Trainer"]["mean"] - 1 for row in rows]
    verdict: Verdict = "undecided" if max(added) - min(added) > 0.06 else "held" if max(added) <= 0.13 else "not"
    return Finding(
        verdict,
        f"The published schedule, which acts at one step in ten, adds {min(added):+.0%} to {max(added):+.0%} to the mean step in "
        f"{len(added)} networks of width {rows[0]['d']} to {rows[-1]['d']}: the machine's noise is as large.",
    )


RKSP = Paper(
    "RKSP and KSS",
    "Kim, Taniguchi, Kawano, Iwasawa, Matsuo, arXiv:2602.22988",
    (
        Claim(
            "Tables 1 (Pre-LN), 11, 16-18", "The published values of a Transformer, MoE, Mamba and KAN.",
            "held: nine tenths of the values agree within 10% (shares: .05); partly: half of them", judge=_values, **_ZOO,
        ),
        Claim(
            "Tables 10, 15", "Blocks of trained models start linear and end nonlinear.",
            "tested once the models of the paper, or five other pretrained ones, are measured", judge=_depth, **_ZOO,
        ),
        Claim(
            "Table 16", "More active experts lower the near-unit mass (.72, .58, .45).",
            "held: it is lower with four than with one in every size; partly: in one", judge=_experts, **_ZOO,
        ),
        Claim(
            "Table 2", "The near-unit mass at initialisation tells which runs diverge (AUROC .995).",
            "held: AUROC at least .95 for all lost runs; partly: .8 for lost runs or for explosions", judge=_auroc,
            **reproduce("risk"),
        ),
        Claim(
            "Appendix H", "The near-unit mass is no calibrated probability (calibration error .283).",
            "held: the error is at least .1 for all lost runs and for explosions; partly: for one of them", judge=_calibration,
            **reproduce("risk"),
        ),
        Claim(
            "Table 3", "KSS keeps runs that clipping loses (12.5% against 58.3%, without a norm).",
            "held: without a norm fewer runs are lost than with clipping (Fisher's exact test, one-sided, p < .05), in kss_default "
            "and in paper_methods; partly: in one of them",
            judge=_rescue,
            **reproduce("kss_default"),
        ),
        Claim(
            "Table 3", "A run with KSS learns more (accuracy 48.2% against 30.8%).",
            "held: without a norm, at the same learning rate, in kss_default and in paper_methods, the intervals of the accuracy "
            "do not overlap; partly: it is higher",
            judge=_accuracy, **reproduce("kss_default"),
        ),
        Claim(
            "Table 3, appendix E", "KSS costs about 11% of a step.", "decided if the networks differ by 6% of a step at "
            "most; held: at most 13% in each",
            judge=_overhead, command="python scripts/bench/training.py", rows=(BENCH,),
        ),
        Claim(
            "Table 5", "KSS raises the highest stable learning rate by 1.6 to 2.5 times.",
            "held: it is higher (95% interval of the ratio) on all three tasks, with clipping and without; partly: in three "
            "or more of these six cases", judge=tables.highest_rates,
            **reproduce("highest_rate"),
        ),
        Claim(
            "Tables 4, 13, 14",
            "KSS keeps more runs than spectral norm, weight norm, gradient penalty and SAM, and more with LAMB and muP.",
            "held: fewer are lost (Fisher's exact test, one-sided, p < .05), and no more are lost or have learnt nothing, than "
            "with each of the five in both settings, and with LAMB and muP than without KSS; partly: in more than half of these 12 "
            "comparisons",
            judge=tables.methods, **reproduce("paper_methods", "report", "optimizers"),
        ),
        Claim(
            "Table 6", "Both terms of KSS are needed, and penalties of the same cost do less.",
            "held: fewer are lost than with either term alone and with each penalty, in both settings (Fisher's exact test, "
            "one-sided, p < .05); partly: than with either term, or than with each penalty",
            judge=tables.terms, **reproduce("paper_methods"),
        ),
        Claim(
            "Tables 7-9", "KSS loses fewer runs and ends lower on language models up to 350M and on ViT.",
            "held: on text and both ViTs it ends lower than clipping at one learning rate (95% interval), and at none "
            "higher or with more lost runs; partly: on one of the three",
            judge=tables.models, **reproduce("paper_models"),
        ),
    ),
    "The learning rates of Table 5 ([highest_rate](../../scripts/reproduce/highest_rate/README.md)):\n\n"
    "![Learning rate at which a fifth of the runs is lost, without KSS, with the schedule of the paper and with our default]"
    "(figures/highest_rate.svg)",
)  # fmt: skip
