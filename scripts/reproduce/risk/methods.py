"""What predicts the learning rate at which runs are lost: the shipped model, parts of it, and what others do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from hf_rksp.risk.features import FEATURES
from hf_rksp.risk.fit import Outcomes
from scripts.reproduce.risk.dataset import Case
from scripts.reproduce.risk.networks import FAMILIES

#: What the owner of a run decides: every method knows it.
PLAN = ("warmup_share", "decays", "clip", "beta2", "decay", "muon", "bfloat16", "steps", "tokens")
SHAPE = ("depth", "width")
#: Of trained weights: all were trained with AdamW in float32.
TRAINED_PLAN = ("warmup_share", "decays", "steps", "labels", "lora")


@dataclass(frozen=True)
class Method:
    """A way to predict; all are fitted in the same way.

    Attributes:
        name: for the table.
        features: keys of `hf_rksp.risk.features.FEATURES`.
        more: further numbers of a configuration, in log2 of what is a rate.
        cost: of the measurement, in training steps of the same model (a backward pass is two forward passes).
    """

    name: str
    features: tuple[str, ...]
    more: Callable[[Case], Sequence[float]] = lambda case: ()
    cost: Callable[[Case], float] = lambda case: 0.0

    def has(self, case: Case) -> bool:
        """Whether everything was measured."""
        return all(FEATURES[key].value(case.numbers, case.plan) is not None for key in self.features)

    def outcomes(self, cases: Sequence[Case]) -> Outcomes:
        """What `hf_rksp.risk.fit.fit` takes."""
        x = [
            [*(float(FEATURES[key].value(case.numbers, case.plan) or 0.0) for key in self.features), *self.more(case)]
            for case in cases
        ]
        return Outcomes(
            numpy.array(x, float).reshape(len(cases), -1),
            [numpy.log2(case.lr) for case in cases],
            [case.lost for case in cases],
        )


def range_lr(case: Case) -> float:
    """Learning rate of the lowest loss of the range test, over five steps, in log2."""
    (run,) = case.row["rivals"]["range"]
    losses = numpy.array([math.inf if loss is None else loss for loss in run["curve"]])
    smooth = [losses[max(place - 2, 0) : place + 3].mean() for place in range(len(losses))]
    return math.log2(run["lr"]) - 13 * (1 - int(numpy.argmin(smooth)) / (len(losses) - 1))


def best_lr(case: Case, which: str) -> float:
    """Learning rate of the lowest final loss among short runs, or runs of a proxy, in log2."""
    whole = [run for run in case.row["rivals"][which] if run["exploded"] is None and run["final"] is not None]
    runs = whole or case.row["rivals"][which][:1]
    return math.log2(min(runs, key=lambda run: run["final"] or math.inf)["lr"])


def measurement(case: Case) -> float:
    """What `rksp risk` costs in training steps, measured (scripts/bench/risk.txt)."""
    return 36.0


def _probes(case: Case) -> float:
    return len(case.row["rivals"]["short"]) * max(case.configuration["steps"] // 10, 15)


def _number(name: str) -> Callable[[Case], Sequence[float]]:
    return lambda case: (math.log2(max(case.numbers.get(name) or 0.0, 1e-9)),)


def _product(case: Case) -> Sequence[float]:
    """The paper's M~1 log kappa."""
    mass, condition = case.numbers["near_unit_mass"], case.numbers["eigenvector_condition_max"]
    return ((mass or 0.0) * math.log10(max(condition or 1.0, 1.0)),)


def _family(case: Case) -> Sequence[float]:
    return [float(case.family == family) for family in FAMILIES]


_CHOSEN = (
    "coordinate_lr",
    "without_curvature",
    "near_unit_mass_max",
    "nonlinearity_ratio",
    "residual_growth",
    "block_growth",
)
NOTHING = Method("nothing (the mean)", ())
OURS = Method("hf_rksp", (*PLAN, *SHAPE, *_CHOSEN), cost=measurement)
#: For random weights. The features of ours were chosen on the first half of the design, by the sum of the log losses with a family
#: and with an eighth of the configurations left out; the second half is what is reported.
METHODS = (
    NOTHING,
    Method("the plan", PLAN),
    Method("the plan + shape", (*PLAN, *SHAPE)),
    Method("the plan + shape + initial scale", (*PLAN, *SHAPE, "weight_rms")),
    Method("the plan + gradient norm", (*PLAN, "gradient_norm"), cost=lambda case: 8.0),
    Method("the plan + M~1", (*PLAN, "near_unit_mass"), cost=lambda case: 8 / 3),
    Method("the plan + M~1 log kappa", PLAN, _product, lambda case: 8 / 3),
    Method("the plan + rho", (*PLAN, "spectral_radius"), cost=lambda case: 8 / 3),
    Method("the plan + kappa", (*PLAN, "eigenvector_condition"), cost=lambda case: 8 / 3),
    Method("the plan + critical lr", (*PLAN, "critical_lr"), cost=measurement),
    Method("the plan + coordinate check", (*PLAN, "coordinate_lr"), cost=lambda case: 4.0),
    Method("the plan + lambda_max", PLAN, _number("lambda_max_after_warmup"), lambda case: 60.0),
    Method("the plan + shape + critical lr + M~1", (*PLAN, *SHAPE, "critical_lr", "near_unit_mass"), cost=measurement),
    Method("the plan + shape + range test", (*PLAN, *SHAPE), lambda case: (range_lr(case),), lambda case: 100.0),
    Method("the plan + shape + short probes", (*PLAN, *SHAPE), lambda case: (best_lr(case, "short"),), _probes),
    Method(
        "the plan + shape + small proxy", (*PLAN, *SHAPE), lambda case: (best_lr(case, "proxy"),), lambda case: 27.0
    ),
    OURS,
)
#: Only where the family is known.
FAMILY_MEAN = Method("the plan + shape + mean of the family", (*PLAN, *SHAPE), _family)
TRAINED_OURS = Method("hf_rksp", (*TRAINED_PLAN, "width", "coordinate_lr"), cost=measurement)
#: For trained weights; with 60 configurations the features of ours were chosen on all of them.
TRAINED_METHODS = (
    NOTHING,
    Method("the plan", TRAINED_PLAN),
    Method("the plan + shape", (*TRAINED_PLAN, *SHAPE)),
    Method("the plan + critical lr", (*TRAINED_PLAN, "critical_lr"), cost=measurement),
    Method("the plan + coordinate check", (*TRAINED_PLAN, "coordinate_lr"), cost=lambda case: 4.0),
    Method(
        "the plan + shape + range test", (*TRAINED_PLAN, *SHAPE), lambda case: (range_lr(case),), lambda case: 100.0
    ),
    Method("the plan + shape + short probes", (*TRAINED_PLAN, *SHAPE), lambda case: (best_lr(case, "short"),), _probes),
    TRAINED_OURS,
)


def _log2(factor: float, number: float | None, power: int) -> float | None:
    """log2 of ``factor * number^power``, if there is a number above 0."""
    return math.log2(factor) + power * math.log2(number) if number is not None and number > 0 else None


#: Learning rates that are predicted without any fit, in log2.
RAW: dict[str, Callable[[Case], float | None]] = {
    "38 / lambda_max": lambda case: _log2(38.0, case.numbers.get("lambda_max_after_warmup"), -1),
    "critical lr": lambda case: _log2(1.0, case.numbers["critical_lr"], 1),
    "range test: lr of the lowest loss": range_lr,
    "short probes: best lr": lambda case: best_lr(case, "short"),
    "small proxy: best lr": lambda case: best_lr(case, "proxy") if "proxy" in case.row["rivals"] else None,
}
