"""Claims of arXiv:2606.16768: preconditioned curvature, and architecture warm-up."""

from __future__ import annotations

import statistics
from typing import Any

import numpy

from scripts.reproduce.architecture_warmup.experiment import lost
from scripts.reproduce.curvature_accuracy.experiment import errors
from scripts.reproduce.curvature_claims.experiment import healthy_and_spikes, surges
from scripts.reproduce.evidence.claim import Claim, Finding, Paper, Verdict, reproduce, rows_of
from scripts.reproduce.harness.intervals import Estimate, paired

_NAMES = {
    "baseline": "baseline", "qk_norm": "QK-norm", "qk_clip": "QK-clip", "soft_cap": "soft cap", "z_loss": "z-loss", "kss": "KSS",
    "depth": "architecture warm-up", "kss_depth": "KSS and architecture warm-up",
    "depth_alone": "architecture warm-up without that of the learning rate",
}  # fmt: skip


def _products() -> Finding:
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows_of("curvature_accuracy"):
        groups.setdefault((row["data"], row["every"]), []).append(row)
    rows = rows_of("curvature_accuracy")
    ours, theirs = (
        next(name for name in rows[0]["estimates"] if word in name) for word in ("the monitor", "(the paper)")
    )
    worst = {}
    for name in (ours, theirs):
        found = [numpy.concatenate([errors(row, name) for row in group]) for group in groups.values()]
        worst[name] = [max(float(numpy.percentile(each, part)) for each in found) for part in (50, 95)]
    used = statistics.fmean(row["products"][ours] for row in rows)
    (middle, high), (their_middle, their_high) = worst[ours], worst[theirs]
    enough = their_middle <= 0.02 and their_high <= 0.1
    verdict: Verdict = "held" if enough else "partly" if middle <= 0.02 and used < 5 else "not"
    return Finding(
        verdict,
        f"Error of the largest eigenvalue in the median and at the 95th percentile, in the worst of {len(groups)} settings: "
        f"{their_middle:.1%} and {their_high:.0%} by the paper's iteration with 4 products, {middle:.1%} and {high:.0%} by our "
        f"search with {used:.1f} products on average.",
    )


def _depth() -> Finding:
    text, grows = [], []
    for family in ("preln", "llama"):
        levels = {}
        for layers in (2, 4, 8, 16):
            runs = [row for row in rows_of("curvature_claims") if row["family"] == family and row["layers"] == layers]
            early = [float(numpy.median(row["lambda_max"][1 : row["warmup"] // row["every"]])) for row in runs]
            levels[layers] = statistics.fmean(early)
        grows.append(all(numpy.diff(list(levels.values())) > 0))
        name = {"preln": "GPT-2", "llama": "LLaMA"}[family]
        text.append(f"{name} {', '.join(f'{level:,.0f}' for level in levels.values())}")
    verdict: Verdict = "held" if all(grows) else "partly" if any(grows) else "not"
    return Finding(verdict, f"Largest eigenvalue in the warm-up with 2, 4, 8, 16 layers: {'; '.join(text)}.")


def _peak() -> Finding:
    rows = rows_of("curvature_claims")
    early = sum(1 + int(numpy.argmax(row["lambda_max"][1:])) < row["warmup"] // row["every"] for row in rows)
    verdict: Verdict = "held" if early >= 0.8 * len(rows) else "partly" if early >= 0.5 * len(rows) else "not"
    return Finding(
        verdict, f"{early} of {len(rows)} runs have their largest reading in the warm-up of the learning rate."
    )


def _surges() -> Finding:
    healthy, spikes = healthy_and_spikes(rows_of("curvature_claims", "alarms"))
    at = [(at // row["every"], surges(row)) for row, at in spikes]
    with_surge = sum(any(place <= one <= place + 2 for one in found) for place, found in at)
    before = sum(any(place - 2 <= one < place for one in found) for place, found in at)
    calm = sum(bool(surges(row)) for row in healthy)
    often = with_surge >= 0.8 * len(spikes)
    verdict: Verdict = "held" if often and calm <= 0.1 * len(healthy) else "partly" if often else "not"
    return Finding(
        verdict,
        f"{with_surge} of {len(spikes)} spikes come with a surge, {before} have one shortly before, and {calm} of {len(healthy)} "
        "healthy runs have surges.",
    )


def _counts(lr: float) -> dict[str, tuple[int, int]]:
    """Arm -> lost runs, of how many."""
    at = [row for row in rows_of("architecture_warmup") if row["lr"] == lr]
    mine = {arm: [row for row in at if row["arm"] == arm] for arm in _NAMES}
    return {arm: (sum(map(lost, runs)), len(runs)) for arm, runs in mine.items()}


def _survives() -> Finding:
    counts = _counts(max(row["lr"] for row in rows_of("architecture_warmup")))
    told = ", ".join(f"{_NAMES[arm]} {hit} of {of}" for arm, (hit, of) in counts.items() if arm != "depth_alone")
    base, warm = (counts[arm][0] / counts[arm][1] for arm in ("baseline", "depth"))
    verdict: Verdict = "held" if warm <= 0.2 < base else "not" if warm >= 0.8 * base else "partly"
    return Finding(verdict, f"Lost at four times the highest stable learning rate: {told}.")


def _against(arm: str) -> Estimate:
    """Loss on held-out text at twice the highest stable rate, minus that of the baseline, of seeds that neither lost."""
    lr = min(row["lr"] for row in rows_of("architecture_warmup"))
    rows = [row for row in rows_of("architecture_warmup") if row["lr"] == lr and not lost(row)]
    mine, base = (
        {row["seed"]: float(row["held_out"]) for row in rows if row["arm"] == one} for one in (arm, "baseline")
    )
    return paired(mine, base)


def _gains() -> Finding:
    found = _against("depth")
    verdict: Verdict = "held" if found.high < 0 else "not" if found.low > 0 else "partly"
    others = ", ".join(f"{_NAMES[arm]} {_against(arm).value:+.3f}" for arm in ("qk_norm", "soft_cap", "kss"))
    return Finding(
        verdict,
        "Loss on held-out text at twice the highest stable rate, minus the baseline's: "
        f"{found.text()} (n={found.count}); beside it {others}.",
    )


def _replaces() -> Finding:
    lr = min(row["lr"] for row in rows_of("architecture_warmup"))
    alone, base = (_counts(lr)[arm] for arm in ("depth_alone", "baseline"))
    found = _against("depth_alone")
    same = alone[0] <= base[0]
    return Finding(
        "held" if same and found.high < 0.05 else "partly" if same else "not",
        f"Without a warm-up of the learning rate {alone[0]} of {alone[1]} runs are lost at twice the highest stable rate (baseline "
        f"with it: {base[0]} of {base[1]}). Final loss of the others minus the baseline's: {found.text()} (n={found.count}).",
    )


CURVATURE = Paper(
    "Preconditioned curvature and architecture warm-up",
    "Ramasinghe et al., arXiv:2606.16768",
    (
        Claim(
            "section 4", "Fewer than 5 Hessian products per step follow the largest eigenvalue.",
            "held: the published iteration has an error of at most 2% in the median and 10% at the 95th percentile; partly: "
            "another method with fewer than 5 products has at most 2% in the median",
            judge=_products, **reproduce("curvature_accuracy"),
        ),
        Claim(
            "section 3", "Curvature grows with depth.", "held: in GPT-2 and in LLaMA from 2 to 16 layers; partly: in one of them",
            judge=_depth, **reproduce("curvature_claims"),
        ),
        Claim(
            "section 3", "Curvature peaks in the warm-up of the learning rate.",
            "held: the largest reading of four fifths of the runs lies there; partly: of half of them", judge=_peak,
            **reproduce("curvature_claims"),
        ),
        Claim(
            "section 3", "Loss spikes come with surges of the curvature.",
            "held: four fifths of the spikes have one, and at most a tenth of the healthy runs; partly: four fifths of the spikes",
            judge=_surges, **reproduce("curvature_claims", "alarms"),
        ),
        Claim(
            "Table 2", "Architecture warm-up trains at learning rates at which the baseline diverges.",
            "held: at four times the highest stable rate it loses a fifth of the runs at most; not: nearly as many as the baseline",
            judge=_survives, **reproduce("architecture_warmup"),
        ),
        Claim(
            "Table 2", "Architecture warm-up ends lower than the baseline.",
            "held: the interval of the paired difference lies below 0; not: above 0", judge=_gains,
            **reproduce("architecture_warmup"),
        ),
        Claim(
            "section 5", "Architecture warm-up can replace the warm-up of the learning rate.",
            "held: no more runs are lost than by the baseline with that warm-up, and they end at most .05 higher (95%); partly: no "
            "more are lost",
            judge=_replaces, **reproduce("architecture_warmup"),
        ),
    ),
)  # fmt: skip
