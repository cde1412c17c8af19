"""Claims of arXiv:2606.16768: preconditioned curvature, and architecture warm-up."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy

from scripts.reproduce.architecture_warmup.experiment import lost
from scripts.reproduce.curvature_accuracy.experiment import errors
from scripts.reproduce.curvature_claims.experiment import healthy_and_spikes, surges
from scripts.reproduce.evidence.claim import Claim, Finding, Paper, Verdict, experiment_settings, reproduce, rows_of
from scripts.reproduce.harness.intervals import Estimate, fewer, paired

_NAMES = {
    "baseline": "baseline", "qk_norm": "QK-norm", "qk_clip": "QK-clip", "soft_cap": "soft cap", "z_loss": "z-loss", "kss": "KSS",
    "depth": "architecture warm-up", "kss_depth": "KSS and architecture warm-up",
    "depth_alone": "architecture warm-up without that of the learning rate",
}  # fmt: skip


def _products() -> Finding:
    # A reading in every step, which is what the paper does. The batch of the step, or the same batch, whichever is worse.
    rows = [row for row in rows_of("curvature_accuracy") if row["every"] == 1]
    ours, theirs = (
        next(name for name in rows[0]["estimates"] if word in name) for word in ("the monitor", "(the paper)")
    )
    worst = {}
    for name in (ours, theirs):
        found = [numpy.concatenate([errors(r, name) for r in rows if r["data"] == data]) for data in ("batch", "first")]
        worst[name] = [max(float(numpy.percentile(each, part)) for each in found) for part in (50, 95)]
    used = statistics.fmean(row["products"][ours] for row in rows)
    (middle, high), (their_middle, their_high) = worst[ours], worst[theirs]
    enough = their_middle <= 0.02 and their_high <= 0.1
    verdict: Verdict = "held" if enough else "partly" if middle <= 0.02 and used < 5 else "not"
    return Finding(
        verdict,
        "A reading in every step. Error of the largest eigenvalue in the median and at the 95th percentile: "
        f"{their_middle:.1%} and "
        f"{their_high:.0%} by the paper's iteration with 4 products, {middle:.1%} and {high:.0%} by our search with "
        f"{used:.1f} on "
        "average (4 to 16; the first reading takes more and is left out).",
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
    def early(rows: list[dict[str, Any]], key: str, ends: Callable[[dict[str, Any]], float]) -> tuple[int, int]:
        return sum((1 + int(numpy.argmax(row[key][1:]))) * row["every"] < ends(row) for row in rows), len(rows)

    long = early(rows_of("curvature_claims"), "lambda_max", lambda row: float(row["warmup"]))
    whole = experiment_settings("curvature_accuracy")["warmup"]
    short = early(
        [row for row in rows_of("curvature_accuracy") if row["every"] == 1], "truth", lambda row: float(whole)
    )
    shares = [hit / of for hit, of in (long, short)]
    verdict: Verdict = "held" if min(shares) >= 0.8 else "partly" if max(shares) >= 0.8 else "not"
    return Finding(
        verdict,
        f"The largest reading lies in the warm-up in {long[0]} of {long[1]} runs with 100 steps of warm-up, and in "
        f"{short[0]} of {short[1]} "
        f"with {whole} (converged eigenvalues). The networks of the two differ too, so what moves the peak is "
        "open.",
    )


def _surges() -> Finding:
    healthy, spikes = healthy_and_spikes(rows_of("curvature_claims", "alarms"))
    windows = [(row["family"], at // row["every"]) for row, at in spikes]
    found = [surges(row) for row, _ in spikes]
    with_surge = sum(any(p <= one <= p + 2 for one in each) for (_, p), each in zip(windows, found, strict=True))
    calm = statistics.fmean(any(p <= one <= p + 2 for one in surges(row)) for _, p in windows for row in healthy)
    alone = {family for family, _ in windows} - {row["family"] for row in healthy}
    many = sum(family in alone for family, _ in windows)
    often = with_surge >= 0.8 * len(spikes) and calm <= 0.2
    verdict: Verdict = "held" if often and not alone else "partly" if often else "not"
    return Finding(
        verdict,
        f"{with_surge} of {len(spikes)} spikes come with a surge; in the same steps {calm:.0%} of the healthy runs have "
        f"one. {many} of the "
        "spikes are of a family without a healthy run to compare with.",
    )


def _counts(lr: float) -> dict[str, tuple[int, int]]:
    """Arm -> lost runs, of how many."""
    at = [row for row in rows_of("architecture_warmup") if row["lr"] == lr]
    mine = {arm: [row for row in at if row["arm"] == arm] for arm in _NAMES}
    return {arm: (sum(map(lost, runs)), len(runs)) for arm, runs in mine.items()}


def _survives() -> Finding:
    lr = max(row["lr"] for row in rows_of("architecture_warmup"))
    counts = _counts(lr)
    told = ", ".join(f"{_NAMES[arm]} {hit} of {of}" for arm, (hit, of) in counts.items() if arm != "depth_alone")
    base, warm = (counts[arm][0] / counts[arm][1] for arm in ("baseline", "depth"))
    verdict: Verdict = "held" if warm <= 0.2 < base else "not" if warm >= 0.8 * base else "partly"
    grid = ", ".join(f"{one:g}" for one in sorted({row["lr"] for row in rows_of("architecture_warmup", "tune")}))
    return Finding(
        verdict,
        f"Lost at {lr:g}: {told}. The highest rate at which the baseline loses no tuning run is .03, on the grid {grid}; "
        "rates between "
        "are not known.",
    )


def _lowest() -> list[dict[str, Any]]:
    """The runs at the lower of the two reported rates, and the control without any warm-up, which has that rate."""
    rows = rows_of("architecture_warmup")
    lr = min(row["lr"] for row in rows)
    return [row for row in [*rows, *rows_of("architecture_warmup", "control")] if row["lr"] == lr]


def _against(arm: str, other: str = "baseline") -> Estimate:
    """Loss on held-out text at the lower of the two reported rates, minus that of another arm, of seeds that neither lost."""
    mine, theirs = (
        {row["seed"]: float(row["held_out"]) for row in _lowest() if row["arm"] == one and not lost(row)}
        for one in (arm, other)
    )
    return paired(mine, theirs)


def _gains() -> Finding:
    found = _against("depth")
    verdict: Verdict = "partly" if found.high < 0 else "not"  # at its best rate the baseline was not compared
    lr = min(row["lr"] for row in rows_of("architecture_warmup"))
    others = ", ".join(f"{_NAMES[arm]} {_against(arm).value:+.3f}" for arm in ("qk_norm", "soft_cap", "kss"))
    tuning = [row for row in rows_of("architecture_warmup", "tune") if row["arm"] == "baseline" and not lost(row)]
    means = {
        rate: statistics.fmean(r["held_out"] for r in tuning if r["lr"] == rate) for rate in {r["lr"] for r in tuning}
    }
    best = min(means, key=means.__getitem__)
    here = statistics.fmean(
        r["held_out"]
        for r in rows_of("architecture_warmup")
        if r["lr"] == lr and r["arm"] == "baseline" and not lost(r)
    )
    return Finding(
        verdict,
        f"Loss on held-out text at {lr:g} minus the baseline's: {found.text()} (n={found.count}); beside it {others}. "
        "There the baseline "
        f"is at {here:.2f}; at its best rate ({best:g}) it is at {means[best]:.2f}.",
    )


def _replaces() -> Finding:
    names = {
        "baseline": "with a warm-up of the learning rate",
        "no_warmup": "with none",
        "depth_alone": "with that of the architecture",
    }
    runs = {arm: [lost(row) for row in _lowest() if row["arm"] == arm] for arm in names}
    counts = {arm: (sum(each), len(each)) for arm, each in runs.items()}
    none, alone = _against("no_warmup"), _against("depth_alone")
    needed = fewer(counts["baseline"], counts["no_warmup"]) < 0.05 or none.low > 0
    helps = fewer(counts["depth_alone"], counts["no_warmup"]) < 0.05 or _against("depth_alone", "no_warmup").high < 0
    equal = fewer(counts["baseline"], counts["depth_alone"]) >= 0.05 and alone.high < 0.01
    verdict: Verdict = "undecided" if not needed else "held" if equal else "partly" if helps else "not"
    lost_runs = ", ".join(
        f"{name} {hits} of {of}" for name, (hits, of) in zip(names.values(), counts.values(), strict=True)
    )
    more = "" if needed else " No warm-up is needed here."
    return Finding(
        verdict,
        f"Lost at {_lowest()[0]['lr']:g}: {lost_runs}. Loss on held-out text minus that with a warm-up of the learning rate: "
        f"with none {none.text()}, with that of the architecture {alone.text()}.{more}",
    )


CURVATURE = Paper(
    "Preconditioned curvature and architecture warm-up",
    "Ramasinghe et al., arXiv:2606.16768",
    (
        Claim(
            "section 4", "Fewer than 5 Hessian products per step follow the largest eigenvalue.",
            "held: the published iteration with 4 products has an error of at most 2% in the median and 10% at the 95th "
            "percentile; "
            "partly: another method with fewer than 5 products on average has at most 2% in the median",
            judge=_products, **reproduce("curvature_accuracy"),
        ),
        Claim(
            "section 3", "Curvature grows with depth.", "held: in GPT-2 and in LLaMA from 2 to 16 layers; partly: in one "
            "of them",
            judge=_depth, **reproduce("curvature_claims"),
        ),
        Claim(
            "section 3", "Curvature peaks in the warm-up of the learning rate.",
            "held: with both lengths of the warm-up the largest reading of four fifths of the runs lies in it; partly: "
            "with one",
            judge=_peak, **reproduce("curvature_claims"),
        ),
        Claim(
            "section 3", "Loss spikes come with surges of the curvature.",
            "held: four fifths of the spikes have one, at most a fifth of the healthy runs in the same steps, and every "
            "family with a spike "
            "has healthy runs; partly: without the last",
            judge=_surges, **reproduce("curvature_claims", "alarms"),
        ),
        Claim(
            "Table 2", "Architecture warm-up trains at learning rates at which the baseline diverges.",
            "held: at a rate at which the baseline loses more than a fifth it loses a fifth at most; not: nearly as many",
            judge=_survives, **reproduce("architecture_warmup"),
        ),
        Claim(
            "Table 2", "Architecture warm-up ends lower than the baseline.",
            "held: each at its best rate; partly: at the same rate, which is too high for the baseline", judge=_gains,
            **reproduce("architecture_warmup"),
        ),
        Claim(
            "section 5", "Architecture warm-up can replace the warm-up of the learning rate.",
            "decided if the baseline without any warm-up is worse than with that of the learning rate (more lost runs by "
            "Fisher's exact test, or a higher loss by the 95% interval); held: with that of the architecture instead no "
            "more runs are lost and the loss ends no higher (interval below .01); partly: it is better than none",
            judge=_replaces, **reproduce("architecture_warmup", "control"),
        ),
    ),
)  # fmt: skip
