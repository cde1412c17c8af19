"""Score the risk model and its baselines on configurations that no fit has seen, from the committed rows.

    python scripts/evaluate_risk.py              # the figures; the last line is a summary
    python scripts/evaluate_risk.py --write      # fit to all rows and write hf_rksp/risk/model.json

A family of networks is left out with its twins (Pre-LN with RMSNorm, Post-LN with DeepNorm, LLaMA with Mixtral). The model is
fitted to the rest, and its predictions for the family are scored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hf_rksp.files import put_file  # noqa: E402
from hf_rksp.risk.calibrated import VERSION  # noqa: E402
from hf_rksp.risk.features import FEATURES  # noqa: E402
from hf_rksp.risk.fit import Fit, fit  # noqa: E402
from scripts.reproduce.risk.dataset import Case, outcomes_of, read, usable  # noqa: E402
from scripts.reproduce.risk.scores import Predicted, bootstrap, first_stage_loss, score  # noqa: E402

ROWS = ROOT / "scripts/reproduce/risk/results.jsonl"
MODEL = ROOT / "hf_rksp/risk/model.json"
#: What the owner of a run decides: every method knows it.
PLAN = ("warmup", "decays", "clip", "beta2", "decay", "muon", "bfloat16", "steps", "tokens")
SHAPE = ("depth", "width")
NOTHING = "nothing (the mean)"
#: Sets of features, the model last.
METHODS: dict[str, tuple[str, ...]] = {
    NOTHING: (),
    "the plan alone": PLAN,
    "plan + shape": PLAN + SHAPE,
    "plan + gradient norm": (*PLAN, "gradient_norm"),
    "plan + near-unit mass": (*PLAN, "near_unit_mass"),
    "plan + spectral radius": (*PLAN, "spectral_radius"),
    "plan + eigenvector condition": (*PLAN, "eigenvector_condition"),
    "plan + critical lr": (*PLAN, "critical_lr"),
    "plan + coordinate check": (*PLAN, "coordinate_lr"),
    "plan + shape + critical lr + near-unit mass": (*PLAN, *SHAPE, "critical_lr", "near_unit_mass"),
    "hf_rksp": (
        *PLAN, *SHAPE, "critical_lr", "coordinate_lr", "near_unit_mass", "contractive_mass", "spectral_radius",
        "nonlinearity_ratio", "residual_growth", "attention_logit", "gradient_norm",
    ),
}  # fmt: skip
OURS = "hf_rksp"
#: Chosen beforehand, in units of one configuration.
RIDGE = 10.0
#: Fits to resampled configurations that the shipped model carries.
_RESAMPLED = 40


def left_out(cases: Sequence[Case], features: Sequence[str], key: Callable[[Case], object]) -> list[Predicted]:
    """Predictions for each group of configurations by the fit to all others."""
    found = []
    for group in sorted({key(case) for case in cases}, key=str):
        rest = [case for case in cases if key(case) != group]
        mine = [case for case in cases if key(case) == group]
        made = fit(outcomes_of(rest, features), RIDGE)
        thresholds = made.log2_threshold(outcomes_of(mine, features).features)
        found += [Predicted(case, float(at), made.spread) for case, at in zip(mine, thresholds, strict=True)]
    return found


def calibrated(cases: Sequence[Case], features: Sequence[str], key: Callable[[Case], object]) -> list[Predicted]:
    """The same with the scatter that groups show which a fit has not seen: it is wider than the fit's own.

    The scatter for a group comes from leaving out each of the other groups, by fits that have not seen the first one either.
    """
    found = []
    for group in sorted({key(case) for case in cases}, key=str):
        rest = [case for case in cases if key(case) != group]
        mine = [case for case in cases if key(case) == group]
        spread = _spread(left_out(rest, features, key))
        thresholds = fit(outcomes_of(rest, features), RIDGE).log2_threshold(outcomes_of(mine, features).features)
        found += [Predicted(case, float(at), spread) for case, at in zip(mine, thresholds, strict=True)]
    return found


def _spread(predicted: Sequence[Predicted]) -> float:
    """The scatter with the least log loss over the first stage, whose learning rates do not depend on what came out.

    Runs near the edge of each configuration would make it too wide: half of them are lost by choice.
    """
    candidates = numpy.geomspace(0.25, 6, 49)
    losses = [
        math.fsum(first_stage_loss(Predicted(one.case, one.log2_threshold, float(s))) for one in predicted)
        for s in candidates
    ]
    return float(candidates[int(numpy.argmin(losses))])


def table(cases: Sequence[Case], key: Callable[[Case], object], intervals: bool = True) -> list[str]:
    """A line per method."""
    lines = [
        f"{'':44s} {'AUROC':>18s} {'factor 2':>18s} {'factor 1.5':>10s} {'median':>7s} {'Brier':>6s} {'ECE':>6s} {'all':>6s} "
        f"{'skill':>6s}"
    ]
    reference = None
    for name, features in METHODS.items():
        predicted = calibrated(cases, features, key)
        found = score(predicted)
        reference = reference if reference is not None else found.log_loss
        auroc = _with(found.auroc, bootstrap(predicted, lambda s: s.auroc) if intervals else None)
        within = _with(found.within_2, bootstrap(predicted, lambda s: s.within_2) if intervals else None)
        skill = 1 - found.log_loss / reference
        lines.append(
            f"{name:44s} {auroc:>18s} {within:>18s} {found.within_1_5:10.2f} {f'x{found.median_factor:.2f}':>7s} "
            f"{found.brier:6.3f} {found.ece:6.3f} {found.coarse_ece:6.3f} {skill:6.2f}"
        )
    return lines


def _with(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def write(cases: Sequence[Case], path: Path) -> None:
    """Fit to all configurations and write the model."""
    features = METHODS[OURS]
    data = outcomes_of(cases, features)
    made = fit(data, RIDGE)
    dice = numpy.random.default_rng(0)
    resampled = []
    for _ in range(_RESAMPLED):
        other = fit(data.take(dice.integers(len(cases), size=len(cases))), RIDGE)
        resampled.append(_in_units_of(other, made))
    predicted = left_out(cases, features, lambda case: case.group)
    raw = ROWS.read_bytes()
    model = {
        "version": VERSION,
        "description": [
            f"{len(cases)} configurations of small networks ({sum(len(case.lr) for case in cases)} runs): GPT-2 with six norms, "
            "both forms of DeepNorm, LLaMA, Mixtral; width 32 to 128, 2 to 8 layers, 150 to 300 steps; text and recall.",
            "A run is lost if it explodes, or ends useless at a learning rate above the best one.",
            _checked(cases),
        ],
        "trained_on": {"configurations": len(cases), "rows_sha256": hashlib.sha256(raw).hexdigest()},
        "features": list(features),
        "mean": _rounded(made.mean),
        "scale": _rounded(made.scale),
        "weights": _rounded(made.weights),
        "ranges": [_rounded(pair) for pair in zip(data.features.min(0), data.features.max(0), strict=True)],
        "bias": round(made.bias, 5),
        "spread": round(_spread(predicted), 4),
        "resampled": [_rounded(row) for row in resampled],
        "per_doubling": round(_per_doubling(cases, features), 3),
        "trained": {
            "optimizer": ["adamw", "muon"],
            "objective": ["causal"],
            "start": ["initialised"],
            "dtype": ["float32", "bfloat16"],
        },
    }
    put_file(path, (json.dumps(model, indent=1) + "\n").encode())


def _checked(cases: Sequence[Case]) -> str:
    """A sentence on how good the model is, for those who read its answers."""
    ours, mean = (score(calibrated(cases, METHODS[name], lambda case: case.group)) for name in (OURS, NOTHING))
    verdict = "lower" if ours.log_loss < mean.log_loss else "higher"
    return (
        f"The model was checked on families of networks that it had not seen. It predicts {ours.within_2:.0%} of the failing "
        f"learning rates within a factor of 2. The mean of all runs does so for {mean.within_2:.0%}. The log loss of the model is "
        f"{verdict} than that of the mean."
    )


def _in_units_of(other: Fit, made: Fit) -> list[float]:
    """Weights and bias of ``other`` for features that are standardised as those of ``made``."""
    weights = other.weights / other.scale * made.scale
    bias = other.bias + float(((made.mean - other.mean) / other.scale) @ other.weights)
    return [*weights.tolist(), bias]


def _per_doubling(cases: Sequence[Case], features: Sequence[str]) -> float:
    """Error of log2 of the threshold per factor of 2 in width: on widths above 64 by the fit to those up to 64.

    What a fit to the small ones misses of small ones that it has not seen is taken off.
    """
    small = [case for case in cases if case.configuration["width"] <= 64]
    large = [case for case in cases if case.configuration["width"] > 64 and case.edge is not None]
    at = fit(outcomes_of(small, features), RIDGE).log2_threshold(outcomes_of(large, features).features)
    far = [Predicted(case, float(where), 1.0) for case, where in zip(large, at, strict=True)]
    near = [one for one in left_out(small, features, lambda case: case.group) if one.case.edge is not None]
    doublings = numpy.mean([math.log2(case.configuration["width"] / 64) for case in large])
    return math.sqrt(max(_square(far) - _square(near), 0.0)) / float(doublings)


def _square(predicted: Sequence[Predicted]) -> float:
    return float(numpy.mean([(one.log2_threshold - math.log2(one.case.edge or 1)) ** 2 for one in predicted]))


def _rounded(values: Sequence[float] | numpy.ndarray) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]


def main() -> None:
    """Print the figures, or write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fit to all rows and write hf_rksp/risk/model.json")
    parser.add_argument("--rows", type=Path, default=ROWS, help="results file (default: the committed one)")
    args = parser.parse_args()
    every = sorted({key for features in METHODS.values() for key in features})
    cases = read(args.rows)
    chosen = usable(cases, every)
    missing = {
        FEATURES[key].title for case in cases for key in every if FEATURES[key].value(case.numbers, case.plan) is None
    }
    print(
        f"{len(cases)} configurations, {sum(len(case.lr) for case in cases)} runs; {len(cases) - len(chosen)} lack a feature: "
        f"{', '.join(sorted(missing)) or 'none'}"
    )
    if args.write:
        write(chosen, MODEL)
        print(f"wrote {MODEL.relative_to(ROOT)}")
        return
    print("\na family left out, with its twins")
    print("\n".join(table(chosen, lambda case: case.group)))
    print("\na width left out")
    print("\n".join(table(chosen, lambda case: case.configuration["width"], intervals=False)))
    predicted = calibrated(chosen, METHODS[OURS], lambda case: case.group)
    found = score(predicted)
    print(
        f"\nsummary, families left out: AUROC {found.auroc:.2f}, within a factor 2 {found.within_2:.0%}, "
        f"ECE {found.ece:.3f} near the edge and {found.coarse_ece:.3f} over all learning rates"
    )


if __name__ == "__main__":
    main()
