"""Claims of arXiv:2602.22988: Residual Koopman Spectral Profiling, and the spectral regulariser KSS."""

from __future__ import annotations

import json
import statistics

from sklearn.metrics import roc_auc_score

from scripts.reproduce.evidence import zoo
from scripts.reproduce.evidence.claim import ROOT, Claim, Finding, Paper, Verdict, reproduce, rows_of
from scripts.reproduce.harness.intervals import mean
from scripts.reproduce.kss_default.tables import finals, lost
from scripts.reproduce.risk.dataset import case_of
from scripts.reproduce.risk.figures import pooled

_BENCH = "scripts/bench/training.json"
_ZOO = {"command": "rksp zoo render zoo_reports", "rows": ("zoo_reports/README.md", "zoo_reports/comparison.md")}
#: Learning rates of `kss_default` at which clipping alone loses some runs: the highest of each task.
_HIGHEST = {"recall": 0.0025, "text-preln": 0.005, "text-rmsnorm": 0.02}


def _values() -> Finding:
    agreeing, comparable = zoo.agreement()
    verdict: Verdict = "held" if agreeing >= 0.9 * comparable else "partly" if agreeing >= 0.5 * comparable else "not"
    return Finding(verdict, f"{agreeing} of {comparable} values agree with ours for at least one model size.")


def _depth() -> Finding:
    counts = zoo.depth_counts()
    rising, models = (sum(pair[place] for pair in counts.values()) for place in (0, 1))
    names = {"initialised": "with random weights", "trained": "trained here", "pretrained": "pretrained"}
    each = ", ".join(f"{up} of {all_} {names[weights]}" for weights, (up, all_) in counts.items())
    verdict: Verdict = "held" if rising >= 0.9 * models else "partly" if rising >= 0.5 * models else "not"
    return Finding(verdict, f"The nonlinearity ratio increases with depth in {each}.")


def _experts() -> Finding:
    found = zoo.trend("near_unit_mass", "experts")
    down = sum(result.ours[0] > result.ours[-1] for result in found)
    values = "; ".join(f"{result.size}: {', '.join(f'{value:.2f}' for value in result.ours)}" for result in found)
    return Finding(
        "held" if down == len(found) else "partly" if down else "not", f"Near-unit mass with 1, 2, 4 experts: {values}."
    )


def _auroc() -> Finding:
    cases = [case_of(row) for row in rows_of("risk") if row.get("part") == "random"]
    own, lost_, exploded = pooled(cases)
    values = [case.numbers["near_unit_mass"] for case in own]
    of_explosions, of_lost = (roc_auc_score(label, values) for label in (exploded, lost_))
    verdict: Verdict = "held" if of_lost >= 0.95 else "partly" if max(of_lost, of_explosions) >= 0.8 else "not"
    return Finding(
        verdict,
        f"AUROC {of_explosions:.2f} for runs that explode and {of_lost:.2f} for runs that are lost in any way ({len(own)} "
        "configurations at one learning rate). The mass is the same at every learning rate, so it cannot say at which one a "
        "network fails.",
    )


def _rescue(arm: str) -> Finding:
    counts, better = [], 0
    for task, lr in _HIGHEST.items():
        runs = [row for row in rows_of("kss_default") if row["task"] == task and row["lr"] == lr]
        of = {name: sum(lost(row) for row in runs if row["arm"] == name) for name in ("clip", arm)}
        each = sum(row["arm"] == arm for row in runs)
        counts.append(f"{task} {of[arm]} of {each} (clipping {of['clip']})")
        better += of[arm] < of["clip"] or of[arm] == of["clip"] == 0
    verdict: Verdict = "held" if better == len(_HIGHEST) else "partly" if better else "not"
    return Finding(verdict, f"Lost at 2.5 times the highest stable learning rate: {', '.join(counts)}.")


def _overhead() -> Finding:
    rows = json.loads((ROOT / _BENCH).read_text(encoding="utf-8"))["rows"]
    added = [row["KSS, default, paired"]["overhead"] for row in rows if row["d"] >= 512]
    verdict: Verdict = "held" if statistics.median(added) <= 0.12 else "not"
    return Finding(
        verdict,
        f"Our default adds {statistics.median(added):.1%} of a step in the median from width 512 on ({min(added):.1%} to "
        f"{max(added):.1%}), in every step.",
    )


def _harm() -> Finding:
    worse = []
    for task in _HIGHEST:
        runs = [row for row in rows_of("kss_default") if row["task"] == task]
        best = []
        for arm in ("paper + clip", "clip"):
            rates = {row["lr"] for row in runs if row["arm"] == arm}
            means = [
                mean(list(finals({r["seed"]: r for r in runs if r["arm"] == arm and r["lr"] == lr}).values())).value
                for lr in rates
            ]
            best.append(min(means))
        worse.append((task, best[0] - best[1]))
    verdict: Verdict = "held" if all(d <= 0 for _, d in worse) else "partly" if any(d <= 0 for _, d in worse) else "not"
    text = ", ".join(f"{task} {difference:+.3f}" for task, difference in worse)
    return Finding(
        verdict,
        f"Final loss of the published schedule with clipping minus clipping, each at its best learning rate: {text}.",
    )


_UNTESTED = {"command": "-", "rows": (), "judge": None}

RKSP = Paper(
    "RKSP and KSS",
    "Kim, Taniguchi, Kawano, Iwasawa, Matsuo, arXiv:2602.22988",
    (
        Claim(
            "Tables 11, 16-18", "The published values of MoE, Mamba and KAN models.",
            "held: nine tenths of the values agree within 10% (shares: .05); partly: half of them", judge=_values, **_ZOO,
        ),
        Claim(
            "Tables 10, 15", "Blocks start linear and end nonlinear.",
            "held: the nonlinearity ratio increases with depth in nine tenths of the models; partly: in half of them",
            judge=_depth, **_ZOO,
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
            "Table 3", "KSS as published keeps runs that clipping loses (12.5% against 58.3%).",
            "held: it loses fewer runs than clipping, or none, on all three tasks; partly: on one or two",
            judge=lambda: _rescue("paper + clip"), **reproduce("kss_default"),
        ),
        Claim(
            "ours, for Table 3", "KSS with our default schedule keeps runs that clipping loses.",
            "as in the row above", judge=lambda: _rescue("kss + clip"), **reproduce("kss_default"),
        ),
        Claim(
            "Table 3", "A run with KSS learns more (accuracy 48.2% against 30.8%).",
            "held: the final loss of the published schedule is no higher than that of clipping, each at its best learning rate, on "
            "all three tasks; partly: on one or two", judge=_harm, **reproduce("kss_default"),
        ),
        Claim(
            "Table 3, appendix E", "KSS costs about 11% of a step.", "held: at most 12% in the median", judge=_overhead,
            command="python scripts/bench/training.py", rows=(_BENCH,),
        ),
        Claim("Tables 4, 13, 14", "KSS keeps more runs than spectral norm, weight norm, SAM, Lion, LAMB, muP.", "-", **_UNTESTED),
        Claim("Table 5", "KSS raises the highest stable learning rate by 1.6 to 2.5 times.", "-", **_UNTESTED),
        Claim("Table 6", "Both terms of KSS are needed, and penalties of the same cost do less.", "-", **_UNTESTED),
        Claim("Tables 7-9", "KSS loses fewer runs and ends lower on language models up to 350M and on ViT.", "-", **_UNTESTED),
    ),
)  # fmt: skip
