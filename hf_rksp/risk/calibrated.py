"""The shipped risk models: from features to the probability that a run is lost at a learning rate.

One JSON file holds a model for random weights and a model for trained weights: names of features, their weights, ranges of the runs
behind them, and the errors that were measured on configurations that the fit has not seen.
``python scripts/evaluate_risk.py --write`` makes it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Literal

from scipy.special import ndtr, ndtri

from hf_rksp.errors import InputError, cause_of
from hf_rksp.risk.features import FEATURES
from hf_rksp.risk.plan import OPTIMIZERS, Plan, Start

#: "in range": like the runs behind the model. "extrapolated": an input lies outside, or no run had this architecture. "not
#: assessable": no run had this optimizer, objective, start or kind of block, or a feature could not be measured.
Status = Literal["in range", "extrapolated", "not assessable"]
#: Version of the file.
VERSION = 2
#: Networks without attention, by ``model_type``: they are refused before anything is loaded.
ATTENTION_FREE = ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm")
#: Probability of being lost at the highest recommended learning rate.
SAFE = 0.05
#: An interval of P(lost) that is wider than this says nothing.
_TOO_WIDE = 0.9
#: A feature may lie this share of its range outside of it before the prediction counts as extrapolated.
_MARGIN = 0.05


@dataclass(frozen=True)
class Contribution:
    """What one feature does to the threshold.

    Attributes:
        key, title: see `hf_rksp.risk.features.Feature`.
        value: of the feature, in its own scale (log2 of what is a size or a rate).
        factor: by which the learning rate of failure is larger or smaller than for the mean of the runs behind the model.
    """

    key: str
    title: str
    value: float
    factor: float


@dataclass(frozen=True)
class Outside:
    """A feature outside the range of the runs behind the model; numbers are in the feature's own scale."""

    key: str
    title: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (_short(FEATURES[self.key].shown(one)) for one in (self.value, self.low, self.high))
        return f"{self.title}: {value}, and the runs behind the model have {low} to {high}"


def percent(p: float) -> str:
    """A probability for readers."""
    return "below 1%" if p < 0.01 else "above 99%" if p > 0.99 else f"{p:.0%}"


def decisive(interval: Sequence[float], names_rate: bool) -> bool:
    """Whether a 90% interval of P(lost) says enough to act on it.

    A run that is too far from the runs behind the model for a safe learning rate is too far for a probability between the
    extremes too. What is left then is "likely lost" or "likely not": the whole interval lies on one side of 50%.

    Args:
        names_rate: see `Prediction`.
    """
    return names_rate or interval[0] > 0.5 or interval[1] < 0.5


#: What to say then.
NO_ANSWER = "The interval is too wide to decide anything: this run is too far from the runs behind the model."
#: What to say if `names_rate` is false.
NO_RATE = "No safe learning rate can be named: this run is too far from the runs behind the model."


def names_rate(curve: Sequence[Sequence[float]]) -> bool:
    """`Prediction.names_rate` of what a file has of it.

    Args:
        curve: learning rate, probability and the ends of its interval, which is widest where the probability is 50%.
    """
    return bool(curve) and not any(_says_nothing(point[2:]) for point in curve)


def _says_nothing(interval: Sequence[float]) -> bool:
    return interval[1] - interval[0] > _TOO_WIDE


def effect(factor: float) -> str:
    """What the factor of a `Contribution` does, in words."""
    way = f"{factor:.2g} times higher" if factor > 1 else f"{1 / factor:.2g} times lower"
    return f"fails at a {way} learning rate"


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


@dataclass(frozen=True)
class Prediction:
    """At which learning rates a run is lost.

    Attributes:
        status: see `Status`.
        reasons: why it is not "in range"; empty otherwise.
        threshold: learning rate with ``P(lost) = 1/2``; ``None`` if not assessable.
        spread: standard deviation of log2 of the learning rate at which the run is lost.
        uncertainty: standard deviation of log2 of ``threshold``, from the choice of the runs behind the model and, outside
            their range of widths, depths and steps, the error measured on those that were left out.
        contributions: of each feature, the largest first.
    """

    status: Status
    reasons: tuple[str, ...]
    threshold: float | None
    spread: float
    uncertainty: float
    contributions: tuple[Contribution, ...]

    def p_lost(self, lr: float) -> float | None:
        """Probability that the run is lost at learning rate ``lr``, above 0."""
        if self.threshold is None:
            return None
        return float(ndtr(math.log2(lr / self.threshold) / math.hypot(self.spread, self._widening)))

    def interval(self, lr: float, level: float = 0.9) -> tuple[float, float] | None:
        """Interval of `p_lost` for the uncertainty of the threshold."""
        if self.threshold is None:
            return None
        reach, at = float(ndtri(0.5 + level / 2)) * self.uncertainty, math.log2(lr / self.threshold)
        return float(ndtr((at - reach) / self.spread)), float(ndtr((at + reach) / self.spread))

    def rate_at(self, p: float = SAFE) -> float | None:
        """The highest learning rate at which the probability of being lost is at most ``p``."""
        if self.threshold is None:
            return None
        return float(self.threshold * 2 ** (float(ndtri(p)) * math.hypot(self.spread, self._widening)))

    def decides(self, lr: float) -> bool:
        """Whether P(lost) at ``lr`` is known well enough to act on it; see `decisive`."""
        interval = self.interval(lr)
        return interval is not None and decisive(interval, self.names_rate)

    @property
    def names_rate(self) -> bool:
        """Whether P(lost) is known well enough, where it is 50%, to name a safe learning rate."""
        interval = None if self.threshold is None else self.interval(self.threshold)
        return interval is not None and not _says_nothing(interval)

    @property
    def _widening(self) -> float:
        """Outside the range, the error of the threshold is part of the probability itself."""
        return self.uncertainty if self.status == "extrapolated" else 0.0


@dataclass(frozen=True)
class RiskModel:
    """The model for one kind of start; see the module.

    Attributes:
        description: sentences on the runs behind it.
        trained_on: counts and the hash of the rows.
        features: keys, in the order of the numbers below.
        mean, scale, weights: of the standardised features.
        ranges: lowest and highest value per feature.
        bias: log2 of a learning rate.
        spread: see `Prediction`.
        resampled: weights and bias of fits to resampled configurations, for the uncertainty.
        also_ranges: the same for features that the model does not use, but whose runs lie in a range too: shape and plan.
        other_architecture: error of log2 of the threshold that families which a fit has not seen have beyond those that it has.
        per_doubling: by feature, the error of log2 of the threshold per factor of 2 outside the range of that feature.
        trained: which optimizers, objectives, starts, dtypes and architectures the runs have.
    """

    description: tuple[str, ...]
    trained_on: Mapping[str, Any]
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]
    bias: float
    spread: float
    resampled: tuple[tuple[float, ...], ...]
    also_ranges: Mapping[str, Sequence[float]]
    other_architecture: float
    per_doubling: Mapping[str, float]
    trained: Mapping[str, Sequence[str]]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RiskModel:
        """Read a model from its part of the file.

        Raises:
            InputError: it needs a feature that this package does not know.
        """
        if unknown := [key for key in data["features"] if key not in FEATURES]:
            raise InputError(
                f"features has {unknown[0]!r}, which this version of hf_rksp does not measure; install a newer one"
            )
        tuples: dict[str, Any] = {
            name: tuple(data[name]) for name in ("description", "features", "mean", "scale", "weights")
        }
        nested: dict[str, Any] = {name: tuple(map(tuple, data[name])) for name in ("ranges", "resampled")}
        rest = {one.name: data[one.name] for one in fields(cls) if one.name not in tuples | nested}
        return cls(**tuples, **nested, **rest)

    def predict(self, numbers: Mapping[str, float | None], plan: Plan, architecture: str | None = None) -> Prediction:
        """The prediction for a run.

        Args:
            numbers: from `hf_rksp.risk.features.numbers_of`.
            plan: see `Plan`.
            architecture: ``model_type`` of transformers, if the model has one.
        """
        refusals = self.refusals(plan, architecture)
        if not refusals and numbers.get("largest_attention_logit") is None:
            refusals = ["no attention was seen in the blocks of the model, and every run behind the model has it"]
        if refusals:
            return self._refused(refusals)
        found = self.unchecked(numbers, plan)
        known = self.trained["architecture"]
        if found.threshold is None or architecture is None or architecture in known:
            return found
        reason = f"architecture: {architecture}, and the runs behind the model have {', '.join(known)}"
        uncertainty = math.hypot(found.uncertainty, self.other_architecture)
        return replace(found, status="extrapolated", reasons=(reason, *found.reasons), uncertainty=uncertainty)

    def unchecked(self, numbers: Mapping[str, float | None], plan: Plan) -> Prediction:
        """What `predict` would say if runs like the planned one were behind the model: for checks on runs."""
        limits = dict(zip(self.features, self.ranges, strict=True)) | dict(self.also_ranges)
        values = {key: FEATURES[key].value(numbers, plan) for key in limits}
        refusals = [f"{FEATURES[key].title} could not be measured" for key in self.features if values[key] is None]
        if refusals:
            return self._refused(refusals)
        x = [float(values[key] or 0.0) for key in self.features]
        standard = [(value - mean) / scale for value, mean, scale in zip(x, self.mean, self.scale, strict=True)]
        effects = [weight * value for weight, value in zip(self.weights, standard, strict=True)]
        outside = [
            Outside(key, FEATURES[key].title, value, low, high)
            for key, (low, high) in limits.items()
            if (value := values[key]) is not None
            and not low - _MARGIN * (high - low) - 1e-9 <= value <= high + _MARGIN * (high - low) + 1e-9
        ]
        others = [sum(w * v for w, v in zip(row[:-1], standard, strict=True)) + row[-1] for row in self.resampled]
        middle = sum(others) / len(others)
        variance = sum((other - middle) ** 2 for other in others) / max(len(others) - 1, 1)
        beyond = sum(
            (self.per_doubling.get(one.key, 0.0) * max(one.low - one.value, one.value - one.high)) ** 2
            for one in outside
        )
        contributions = sorted(
            (
                Contribution(key, FEATURES[key].named(value), value, 2.0**effect)
                for key, value, effect in zip(self.features, x, effects, strict=True)
            ),
            key=lambda one: -abs(math.log2(one.factor)),
        )
        return Prediction(
            "extrapolated" if outside else "in range",
            tuple(map(str, outside)),
            2.0 ** (self.bias + sum(effects)),
            self.spread,
            math.sqrt(variance + beyond),
            tuple(contributions),
        )

    def _refused(self, reasons: Sequence[str]) -> Prediction:
        return Prediction("not assessable", tuple(reasons), None, self.spread, math.inf, ())

    def refusals(self, plan: Plan, architecture: str | None = None) -> list[str]:
        """Why no run behind the model tells of ``plan``, whatever is measured; empty if some do."""
        if architecture in ATTENTION_FREE:
            return [f"{architecture} has no attention, and every run behind the model has it"]
        checked = {
            "optimizer": OPTIMIZERS.get(plan.optimizer, plan.optimizer),
            "objective": plan.objective,
            "start": plan.start,
            "dtype": plan.dtype,
        }
        return [
            f"no run behind the model has {name} {value!r}; the runs have {', '.join(self.trained[name])}"
            for name, value in checked.items()
            if value not in self.trained[name]
        ]


def read_models(text: str) -> dict[str, RiskModel]:
    """The models of a file, by start.

    Raises:
        InputError: the file is of another version, or needs a feature that this package does not know.
    """
    try:
        data = json.loads(text)
        version = data.get("version") if isinstance(data, dict) else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a file of risk models: {cause_of(error)}") from None
    if version != VERSION:
        raise InputError(f"version={str(version)[:100]}: this package reads risk models of version {VERSION}")
    try:
        return {start: RiskModel.from_data(part) for start, part in data["models"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a file of risk models: {cause_of(error)}") from None


@functools.cache
def shipped(start: Start) -> RiskModel:
    """The model that comes with the package for random ("initialised") or trained ("pretrained") weights."""
    return read_models(resources.files("hf_rksp.risk").joinpath("model.json").read_text())[start]
