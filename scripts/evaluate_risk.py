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
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hf_rksp.files import put_file  # noqa: E402
from hf_rksp.risk.calibrated import VERSION, read_models  # noqa: E402
from hf_rksp.risk.fit import Fit, fit  # noqa: E402
from scripts.reproduce.risk.crossval import RIDGE, left_out, predict, spread_of  # noqa: E402
from scripts.reproduce.risk.dataset import Case, edge_of, read  # noqa: E402
from scripts.reproduce.risk.design import FIRST_REPORTED  # noqa: E402
from scripts.reproduce.risk.methods import (  # noqa: E402
    FAMILY_MEAN,
    METHODS,
    NOTHING,
    OURS,
    RAW,
    TRAINED_METHODS,
    TRAINED_OURS,
    Method,
)
from scripts.reproduce.risk.scores import Predicted, Scores, bootstrap, score, within  # noqa: E402

FOLDER = ROOT / "scripts/reproduce/risk"
MODEL = ROOT / "hf_rksp/risk/model.json"
#: Fits to resampled configurations that the shipped model carries.
_RESAMPLED = 40
Key = Callable[[Case], Hashable]


def group(case: Case) -> Hashable:
    """Families that are left out together."""
    return case.group


def tenth(case: Case) -> Hashable:
    """A tenth of the design; each has all families."""
    return case.row["seed"] // 9 % 10


def eighth(case: Case) -> Hashable:
    """An eighth of the design of fine-tuning; each has all families."""
    return case.row["seed"] // 4 % 8


def table(methods: Sequence[Method], cases: Sequence[Case], key: Key, first: int, by_family: bool) -> list[str]:
    """A line per method, over the configurations from number ``first`` on."""
    lines = [f"{'':42s} {'AUROC':>6s} {'within factor 2 (95%)':>22s} {'median':>7s} {'Brier':>6s} {'ECE':>6s} {'ECE all':>8s} {'skill':>6s} {'cost':>6s}"]  # fmt: skip
    reference = None
    for method in methods:
        predicted = [one for one in left_out(method, cases, key) if one.case.row["seed"] >= first]
        found = score(predicted)
        reference = reference if reference is not None else found.log_loss
        low, high = bootstrap(predicted, within, by_family=by_family)
        cost = numpy.mean([method.cost(one.case) for one in predicted])
        lines.append(
            f"{method.name:42s} {found.auroc:6.2f} {f'{found.within_2:.2f} ({low:.2f} to {high:.2f})':>22s} "
            f"{f'x{found.median_factor:.2f}':>7s} {found.brier:6.3f} {found.ece:6.3f} {found.coarse_ece:8.3f} "
            f"{1 - found.log_loss / reference:6.2f} {cost:6.1f}"
        )
    return lines


def raw_table(cases: Sequence[Case]) -> list[str]:
    """Learning rates that others read off without a fit."""
    lines = []
    for name, value in RAW.items():
        pairs = [(case, at) for case in cases if case.edge and (at := value(case)) is not None]
        errors = numpy.array([abs(at - math.log2(case.edge or 1)) for case, at in pairs])
        lines.append(
            f"{name:42s} within factor 2 {(errors <= 1).mean():.2f}, median x{2 ** numpy.median(errors):.2f} ({len(errors)} configurations)"
        )
    return lines


def sizes(cases: Sequence[Case]) -> list[str]:
    """Error against the ratio of sizes: fits to width 32."""
    small = [case for case in cases if case.configuration["width"] == 32]
    lines = []
    for ratio in (1, 2, 4):
        asked = [case for case in cases if case.configuration["width"] == 32 * ratio]
        for method in (NOTHING, OURS):
            predicted = left_out(method, small, tenth) if ratio == 1 else predict(method, small, asked)
            found = score(predicted)
            lines.append(
                f"width {32 * ratio:3d}, {ratio}x, {len(predicted):3d} configurations: {method.name:20s} within factor 2 "
                f"{found.within_2:.2f}, median x{found.median_factor:.2f}"
            )
    return lines


def others(cases: Sequence[Case], asked: Sequence[Case], ours: Method) -> list[str]:
    """Predictions of fits to ``cases`` for configurations of another kind."""
    lines = []
    for method in (NOTHING, ours):
        found = score(predict(method, cases, asked))
        lines.append(
            f"{method.name:20s} within factor 2 {found.within_2:.2f}, median x{found.median_factor:.2f}, AUROC {found.auroc:.2f}"
        )
    return lines


def prototype(cases: Sequence[Case], predicted: Sequence[Predicted]) -> str:
    """The same predictions, scored by the label of the first prototype: a final loss .3 nats above the best."""
    errors = []
    for one in predicted:
        runs = one.case.row["runs"]
        whole = [run for run in runs if run["exploded"] is None and run["final"] is not None]
        best = min(whole, key=lambda run: run["final"])
        lost = [
            run["lr"] > best["lr"] and not (run["exploded"] is None and (run["final"] or math.inf) <= best["final"] + 0.3)
            for run in runs
        ]
        edge = edge_of(one.case.lr, numpy.array(lost))
        if edge:
            errors.append(abs(one.log2_threshold - math.log2(edge)))
    return f"within factor 2 {numpy.mean(numpy.array(errors) <= 1):.2f} of {len(errors)} configurations"


def sealed(path: Path) -> list[str]:
    """The shipped model on what it has never seen."""
    models = read_models(MODEL.read_text())
    lines, errors = [], []
    for case in sorted(read(path), key=lambda case: case.row["seed"]):
        plan = case.plan
        model = models[plan.start]
        free = model.unchecked(case.numbers, plan)
        status = model.predict(case.numbers, plan).status
        name = case.configuration["name"]
        if not case.judged or case.edge is None or free.threshold is None:
            lines.append(f"{name:28s} {status:15s} no lr*: {'nothing is learnt' if not case.judged else 'no run, or every run, is lost'}")
            continue
        error = math.log2(free.threshold / case.edge)
        errors.append((status, error))
        lines.append(
            f"{name:28s} {status:15s} lr* {case.edge:8.2g}, predicted {free.threshold:8.2g}, factor {2 ** abs(error):.2f} too {'high' if error > 0 else 'low'}"
        )
    for status in dict.fromkeys(status for status, _ in errors):
        mine = numpy.array([abs(error) for kind, error in errors if kind == status])
        lines.append(f"{status}: within factor 2 {(mine <= 1).mean():.2f} of {len(mine)}, median x{2 ** numpy.median(mine):.2f}")
    return lines


def fitted(method: Method, cases: Sequence[Case], long: Sequence[Case], source: Path, known: Key) -> dict[str, Any]:
    """One model for the package; ``known`` leaves out parts in which every family is known."""
    data = method.outcomes(cases)
    made = fit(data, RIDGE)
    dice = numpy.random.default_rng(0)
    resampled = []
    for _ in range(_RESAMPLED):
        other = fit(data.take(dice.integers(len(cases), size=len(cases))), RIDGE, start=made)
        resampled.append(_in_units_of(other, made))
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
        "per_doubling": _per_doubling(method, cases, long, known),
        "trained": {
            "optimizer": sorted({plan.optimizer for plan in plans}),
            "objective": sorted({plan.objective for plan in plans}),
            "start": sorted({plan.start for plan in plans}),
            "dtype": sorted({plan.dtype for plan in plans}, reverse=True),
        },
    }


def _description(method: Method, cases: Sequence[Case], predicted: Sequence[Predicted]) -> list[str]:
    runs = sum(len(case.lr) for case in cases)
    trained = cases[0].plan.start == "pretrained"
    what = (
        "GPT-2 with LayerNorm or RMSNorm, LLaMA and BERT, trained on WikiText first; another text, or a classification; full and LoRA; "
        "width 32 to 96, 2 to 6 layers, 100 to 200 steps."
        if trained
        else "GPT-2 with six norms, both forms of DeepNorm, LLaMA, Mixtral; width 32 to 128, 2 to 8 layers, 150 to 300 steps; text and "
        "recall."
    )
    ours = within(predicted)
    mean = within(left_out(NOTHING, cases, group))
    return [
        f"{len(cases)} configurations of small networks ({runs} runs): {what}",
        "A run is lost if it explodes, or ends useless or damaged at a learning rate above the best one.",
        "The model was checked on families of networks that it had not seen. It predicts "
        f"{ours:.0%} of the failing learning rates within a factor of 2. The mean of all runs does so for {mean:.0%}.",
    ]


def _in_units_of(other: Fit, made: Fit) -> list[float]:
    """Weights and bias of ``other`` for features that are standardised as those of ``made``."""
    weights = other.weights / other.scale * made.scale
    bias = other.bias + float(((made.mean - other.mean) / other.scale) @ other.weights)
    return [*weights.tolist(), bias]


def _per_doubling(method: Method, cases: Sequence[Case], long: Sequence[Case], known: Key) -> dict[str, float]:
    """Error of log2 of the threshold per factor of 2 outside of what a fit has seen.

    Width: on widths above 64 by the fit to those up to 64; depth takes the same number. Steps: on long runs by the fit to all others.
    What a fit misses of configurations like its own is taken off.
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
    return float(numpy.mean([(one.log2_threshold - math.log2(one.case.edge)) ** 2 for one in predicted if one.case.edge]))


def _rounded(values: Sequence[float] | numpy.ndarray) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]


def summary(predicted: Sequence[Predicted], found: Scores) -> str:
    """The last line."""
    low, high = bootstrap(predicted, within)
    low_a, high_a = bootstrap(predicted, lambda drawn: score(drawn).auroc, draws=100)
    return (
        f"summary, families left out: AUROC {found.auroc:.2f} (95% {low_a:.2f} to {high_a:.2f}; target .90), within a factor 2 "
        f"{found.within_2:.0%} ({low:.0%} to {high:.0%}; target 80%), ECE {found.ece:.3f} near the edge and {found.coarse_ece:.3f} over all "
        "learning rates (target .05)"
    )


def main() -> None:
    """Print the figures, or write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fit to all rows and write hf_rksp/risk/model.json")
    parser.add_argument("--rows", type=Path, default=FOLDER, metavar="FOLDER", help="of the results (default: the committed ones)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors of a fit are small
    rows = {name: args.rows / f"{name}.jsonl" for name in ("results", "long", "finetune", "sealed")}
    every = read(rows["results"])
    cases = [case for case in every if case.judged and all(method.has(case) for method in METHODS)]
    long = [case for case in read(rows["long"]) if case.judged]
    trained = [case for case in read(rows["finetune"]) if all(method.has(case) for method in TRAINED_METHODS)]
    print(
        f"{len(every)} configurations with random weights, {sum(len(case.lr) for case in every)} runs. {len(every) - len(cases)} are left out: "
        "nothing is learnt at any learning rate, or a number could not be measured."
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
        put_file(MODEL, (json.dumps({"version": VERSION, "models": models}, indent=1) + "\n").encode())
        print(f"wrote {MODEL.relative_to(ROOT)}")
        return
    print("Cost is in training steps of the same model. Skill is the log loss per that of the mean, taken from 1.")
    print(f"\nA family left out, with its twins; configurations {FIRST_REPORTED} to 299")
    print("\n".join(table(METHODS, cases, group, FIRST_REPORTED, True)))
    print(f"\nA tenth of the configurations left out: every family is known; configurations {FIRST_REPORTED} to 299")
    print("\n".join(table((*METHODS, FAMILY_MEAN), cases, tenth, FIRST_REPORTED, False)))
    print("\nLearning rates as others read them off, without a fit")
    print("\n".join(raw_table(cases)))
    print("\nError against the ratio of widths: fits to width 32")
    print("\n".join(sizes(cases)))
    print(f"\nFits to runs of 150 to 300 steps, asked about {len(long)} configurations of 1200 steps")
    print("\n".join(others(cases, long, OURS)))
    print(f"\nTrained weights, {len(trained)} configurations; a family left out (GPT-2, LLaMA, BERT)")
    print("\n".join(table(TRAINED_METHODS, trained, group, 0, True)))
    print("\nTrained weights, an eighth of the configurations left out")
    print("\n".join(table(TRAINED_METHODS, trained, eighth, 0, False)))
    predicted = [one for one in left_out(OURS, cases, group) if one.case.row["seed"] >= FIRST_REPORTED]
    print("\nFamilies left out, scored by the label of the prototype (a final loss .3 above the best)")
    print(prototype(cases, predicted))
    if rows["sealed"].exists():
        print("\nThe sealed set, by the shipped model")
        print("\n".join(sealed(rows["sealed"])))
    print("\n" + summary(predicted, score(predicted)))


if __name__ == "__main__":
    main()
