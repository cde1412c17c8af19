"""Score the risk model and what it is compared with on configurations that no fit has seen, from the committed rows.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hf_rksp.files import put_file  # noqa: E402
from hf_rksp.risk.calibrated import VERSION, RiskModel, read_models  # noqa: E402
from hf_rksp.risk.features import FEATURES  # noqa: E402
from hf_rksp.risk.fit import Fit, fit  # noqa: E402
from scripts.reproduce.risk import censored, figures  # noqa: E402
from scripts.reproduce.risk.crossval import RIDGE, left_out, predict, spread_of  # noqa: E402
from scripts.reproduce.risk.dataset import Case, read, rows_of  # noqa: E402
from scripts.reproduce.risk.design import FIRST_REPORTED  # noqa: E402
from scripts.reproduce.risk.figures import Key, eighth, group, tenth  # noqa: E402
from scripts.reproduce.risk.methods import (  # noqa: E402
    FAMILY_MEAN,
    METHODS,
    NOTHING,
    OURS,
    TRAINED_METHODS,
    TRAINED_OURS,
    Method,
)
from scripts.reproduce.risk.scores import Predicted, score, within  # noqa: E402

FOLDER = ROOT / "scripts/reproduce/risk"
MODEL = ROOT / "hf_rksp/risk/model.json"
#: Fits to resampled configurations that the shipped model carries.
_RESAMPLED = 40


def fitted(method: Method, cases: Sequence[Case], long: Sequence[Case], source: Path, known: Key) -> dict[str, Any]:
    """One model for the package; ``known`` leaves out parts in which every family is known."""
    data = method.outcomes(cases)
    made = fit(data, RIDGE)
    dice = numpy.random.default_rng(0)
    # Families are drawn, and not configurations: a model of a user is of another family.
    members = {
        name: [place for place, case in enumerate(cases) if case.family == name] for name in {c.family for c in cases}
    }
    names, resampled = sorted(members), []
    for _ in range(_RESAMPLED):
        drawn = [place for name in dice.choice(names, len(names)) for place in members[str(name)]]
        resampled.append(_in_units_of(fit(data.take(drawn), RIDGE, start=made), made))
    predicted = left_out(method, cases, group)
    plans = [case.plan for case in cases]
    return {
        "description": _description(method, cases, predicted),
        "trained_on": {"configurations": len(cases), "rows_sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        "features": list(method.features),
        "mean": _rounded(made.mean),
        "scale": _rounded(made.scale),
        "weights": _rounded(made.weights),
        "ranges": [_rounded(pair) for pair in zip(data.features.min(0), data.features.max(0), strict=True)],
        "bias": round(made.bias, 5),
        "spread": round(spread_of(predicted), 4),
        "resampled": [_rounded(row) for row in resampled],
        "also_ranges": _also_ranges(method, cases),
        "other_architecture": round(
            math.sqrt(max(_square(predicted) - _square(left_out(method, cases, known)), 0.0)), 3
        ),
        "per_doubling": _per_doubling(method, cases, long, known),
        "trained": {
            "optimizer": sorted({plan.optimizer for plan in plans}),
            "objective": sorted({plan.objective for plan in plans}),
            "start": sorted({plan.start for plan in plans}),
            "dtype": sorted({plan.dtype for plan in plans}, reverse=True),
            "architecture": sorted({case.architecture for case in cases}),
        },
    }


def _description(method: Method, cases: Sequence[Case], predicted: Sequence[Predicted]) -> list[str]:
    runs = sum(len(case.lr) for case in cases)
    trained = cases[0].plan.start == "pretrained"
    what = (
        "GPT-2 with LayerNorm or RMSNorm, LLaMA and BERT, trained on WikiText first, then on another text or a classification, in "
        "full or by LoRA; width 32 to 96, 2 to 6 layers, 100 to 200 steps."
        if trained
        else "GPT-2 with six norms, both forms of DeepNorm, LLaMA, Mixtral; width 32 to 128, 2 to 8 layers, 150 to 300 steps; text "
        "and recall."
    )
    first = 0 if trained else FIRST_REPORTED
    ours, mean = (
        within([one for one in each if one.case.row["seed"] >= first])
        for each in (predicted, left_out(NOTHING, cases, group))
    )
    return [
        f"{len(cases)} configurations of small networks ({runs} runs): {what}",
        "A run is lost if it explodes, or ends useless or damaged at a learning rate above the best one.",
        "The model was checked on families of networks that it had not seen. It predicts "
        f"{ours:.0%} of the failing learning rates within a factor of 2. The mean of all runs predicts {mean:.0%}.",
    ]


def _also_ranges(method: Method, cases: Sequence[Case]) -> dict[str, list[float]]:
    """Of shape and plan, as far as the method does not use them."""
    found = {}
    for key in ("depth", "width", "tokens", "beta2", "decay"):
        if key not in method.features:
            values = [FEATURES[key].value(case.numbers, case.plan) or 0.0 for case in cases]
            found[key] = _rounded([min(values), max(values)])
    return found


def _sealed(path: Path, models: dict[str, dict[str, Any]], start: str) -> str:
    """A sentence on what the model was never fitted to."""
    read_back = {name: RiskModel.from_data(part) for name, part in models.items()}
    cases = [case for case in read(path) if case.plan.start == start] if path.exists() else []
    _, errors = figures.sealed(cases, read_back)
    if not len(errors):
        return "No sealed configuration with such weights was run yet."
    names = ", ".join(dict.fromkeys(case.family for case in cases if not read_back[start].refusals(case.plan)))
    return (
        f"It was also checked on {len(errors)} sealed configurations of other kinds ({names}), and predicts "
        f"{(abs(errors) <= 1).mean():.0%} of those. Its answers were up to {2 ** -errors.min():.0f} times too low there, and up to "
        f"{2 ** errors.max():.1f} times too high."
    )


def _in_units_of(other: Fit, made: Fit) -> list[float]:
    """Weights and bias of ``other`` for features that are standardised as those of ``made``."""
    weights = other.weights / other.scale * made.scale
    bias = other.bias + float(((made.mean - other.mean) / other.scale) @ other.weights)
    return [*weights.tolist(), bias]


def _per_doubling(method: Method, cases: Sequence[Case], long: Sequence[Case], known: Key) -> dict[str, float]:
    """Error of log2 of the threshold per factor of 2 outside of what a fit has seen.

    Width: on widths above 64 by the fit to those up to 64; depth takes the same number. Steps: on long runs by the fit to all the
    others. What a fit misses of configurations like its own is taken off.
    """
    own = _square(left_out(method, cases, known))
    small = [case for case in cases if case.configuration["width"] <= 64]
    large = [case for case in cases if case.configuration["width"] > 64]
    near = _square(left_out(method, small, known))
    width = math.sqrt(max(_square(predict(method, small, large)) - near, 0.0))
    doublings = float(numpy.mean([math.log2(case.configuration["width"] / 64) for case in large]))
    found = {"width": width / doublings, "depth": width / doublings}
    if long:
        most = max(case.plan.steps for case in cases)
        apart = float(numpy.mean([math.log2(case.plan.steps / most) for case in long]))
        found["steps"] = math.sqrt(max(_square(predict(method, cases, long)) - own, 0.0)) / apart
    return {name: round(value, 3) for name, value in found.items()}


def _square(predicted: Sequence[Predicted]) -> float:
    return float(
        numpy.mean([(one.log2_threshold - math.log2(one.case.edge)) ** 2 for one in predicted if one.case.edge])
    )


def _rounded(values: Sequence[float] | numpy.ndarray) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]


def main() -> None:
    """Print the figures, or write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fit to all rows and write hf_rksp/risk/model.json")
    parser.add_argument(
        "--rows", type=Path, default=FOLDER, metavar="FOLDER", help="of the results (default: the committed ones)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors of a fit are small
    rows = {name: args.rows / f"{name}.jsonl" for name in ("results", "long", "finetune", "seeds", "sealed")}
    every = read(rows["results"])
    cases = [case for case in every if case.judged and all(method.has(case) for method in METHODS)]
    long = [case for case in read(rows["long"]) if case.judged]
    trained = [case for case in read(rows["finetune"]) if all(method.has(case) for method in TRAINED_METHODS)]
    runs = sum(len(case.lr) for case in every)
    print(
        f"{len(every)} configurations with random weights, {runs} runs. {len(every) - len(cases)} are left out: nothing is learnt "
        "at any learning rate, or a number could not be measured."
    )
    if args.write:
        models = {
            "initialised": fitted(OURS, cases, long, rows["results"], tenth),
            "pretrained": fitted(TRAINED_OURS, trained, (), rows["finetune"], eighth),
        }
        # Few and narrow ones were fine-tuned: what is measured on random weights is the least that is assumed.
        for name, error in models["initialised"]["per_doubling"].items():
            own = models["pretrained"]["per_doubling"]
            own[name] = max(own.get(name, 0.0), error)
        for start, part in models.items():
            part["description"].append(_sealed(rows["sealed"], models, start))
        put_file(MODEL, (json.dumps({"version": VERSION, "models": models}, indent=1) + "\n").encode())
        print(f"wrote {MODEL.relative_to(ROOT)}")
        return
    print("Cost is in training steps of the same model. Skill is the log loss per that of the mean, taken from 1.")
    print(f"\nA family left out, with its twins; configurations {FIRST_REPORTED} to 299")
    print("\n".join(figures.compared(METHODS, cases, group, FIRST_REPORTED, True)))
    print(f"\nA tenth of the configurations left out: every family is known; configurations {FIRST_REPORTED} to 299")
    print("\n".join(figures.compared((*METHODS, FAMILY_MEAN), cases, tenth, FIRST_REPORTED, False)))
    print("\nLearning rates as others read them off, without a fit")
    print("\n".join(figures.raw(cases)))
    print("\nError against the ratio of widths: fits to width 32")
    print("\n".join(figures.sizes(cases)))
    print(f"\nFits to runs of 150 to 300 steps, asked about {len(long)} configurations of 1200 steps")
    print("\n".join(figures.others(cases, long, OURS)))
    print(f"\nTrained weights, {len(trained)} configurations; a family left out (GPT-2, LLaMA, BERT)")
    print("\n".join(figures.compared(TRAINED_METHODS, trained, group, 0, True)))
    print("\nTrained weights, an eighth of the configurations left out")
    print("\n".join(figures.compared(TRAINED_METHODS, trained, eighth, 0, False)))
    predicted = [one for one in left_out(OURS, cases, group) if one.case.row["seed"] >= FIRST_REPORTED]
    print("\nFamilies left out, scored by the label of the prototype (a final loss .3 above the best)")
    print(figures.prototype(cases, predicted))
    print("\nFamilies left out, by an interval-censored fit of log lr* (the check of the likelihood)")
    print(figures.check(predicted, censored.left_out(OURS, cases, group)))
    print("\nTwo seeds of one configuration, each with a lr* of its own (no forecast knows the seed)")
    print(figures.between_seeds(rows_of(rows["seeds"])))
    if rows["sealed"].exists():
        print("\nThe sealed set, by the shipped model")
        print("\n".join(figures.sealed(read(rows["sealed"]), read_models(MODEL.read_text()))[0]))
    print("\n" + figures.summary(predicted, score(predicted)))


if __name__ == "__main__":
    main()
