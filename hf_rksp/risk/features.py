"""What was measured before the first step, as plain numbers, and the features that the risk model makes of them.

No feature depends on the planned learning rate: so the probability rises with it by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_rksp.profile.model import ModelProfile
from hf_rksp.profile.signals import ForwardSignals
from hf_rksp.profile.step import StepMeasurement, Summary
from hf_rksp.risk.plan import OPTIMIZERS, SCHEDULES, Plan

#: A number that was measured, or ``None`` if it could not be.
Numbers = dict[str, float | None]


def numbers_of(profile: ModelProfile, signals: ForwardSignals, step: StepMeasurement) -> Numbers:
    """The measurements of one model in one flat mapping.

    Names that end in ``_lr`` are learning rates. ``critical_lr`` is the median over pairs of batches, ``critical_lr_spread`` the
    upper quartile per the lower one. Masses are means over the layers, and over the early and the late third of the depth.
    """
    return forward_numbers(profile, signals) | step_numbers(step)


def forward_numbers(profile: ModelProfile, signals: ForwardSignals) -> Numbers:
    """The part of `numbers_of` that forward passes give."""
    means = {name: values["mean"] for name, values in profile.aggregates.items()}
    most = {name: values["max"] for name, values in profile.aggregates.items()}
    numbers: dict[str, Any] = {
        "near_unit_mass": means.get("near_unit_mass"),
        "near_unit_mass_max": most.get("near_unit_mass"),
        "near_unit_mass_early": _third(profile, "early", "near_unit_mass"),
        "near_unit_mass_late": _third(profile, "late", "near_unit_mass"),
        "expansive_mass": means.get("expansive_mass"),
        "contractive_mass": means.get("contractive_mass"),
        "spectral_radius": means.get("spectral_radius"),
        "spectral_radius_max": most.get("spectral_radius"),
        "eigenvector_condition_max": most.get("eigenvector_condition"),
        "nonlinearity_ratio": means.get("nonlinearity_ratio"),
        "residual_growth": signals.residual_growth,
        "block_growth": signals.block_growth,
        "largest_attention_logit": signals.largest_attention_logit,
        "log_z": signals.log_z,
        "depth": float(len(profile.layers)),
        "width": float(max((layer.dim for layer in profile.layers), default=0)),
    }
    return {name: _plain(value) for name, value in numbers.items()}


def step_numbers(step: StepMeasurement) -> Numbers:
    """The part of `numbers_of` that takes gradients."""
    check, pairs = step.coordinate_check, len(step.pairs)
    numbers: dict[str, Any] = {
        "loss": sum(step.losses) / len(step.losses),
        "gradient_norm": math.exp(
            sum(math.log(max(norm, 1e-30)) for norm in step.gradient_norms) / len(step.gradient_norms)
        ),
        "noise_scale": step.noise_scale,
        "weight_rms": step.weight_rms,
        "share_below_eps": step.share_below_eps,
        "share_without_gradient": step.share_without_gradient,
        "critical_lr": _median(step.critical_lr),
        "critical_lr_spread": _spread(step.critical_lr),
        "quadratic_critical_lr": _median(step.quadratic_critical_lr),
        "coordinate_lr": check.lr if check else None,
        "without_descent": step.without_descent / pairs,
        "without_curvature": step.without_curvature / pairs,
        "direction_norm": step.pairs[0].direction_norm,
        "parameters": float(step.parameters),
    }
    return {name: _plain(value) for name, value in numbers.items()}


def _third(profile: ModelProfile, third: str, name: str) -> Any:
    return profile.thirds.get(third, {}).get(name)


def _median(summary: Summary | None) -> float | None:
    return summary.median if summary else None


def _spread(summary: Summary | None) -> float | None:
    return summary.upper / summary.lower if summary else None


def _plain(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Feature:
    """One input of the risk model.

    Attributes:
        key: its name in data.
        title: for readers.
        value: of the measured numbers and the plan; ``None`` if it was not measured.
        shown: from the value back to the number that a reader knows.
        otherwise: title of a feature that is yes or no, where it is no.
    """

    key: str
    title: str
    value: Callable[[Mapping[str, float | None], Plan], float | None]
    shown: Callable[[float], float] = float
    otherwise: str | None = None

    def named(self, value: float) -> str:
        """Its title at ``value``."""
        return self.otherwise if self.otherwise and not value else self.title


def _power(value: float) -> float:
    return float(2.0**value)


def _log2(name: str, least: float = 1e-12) -> Callable[[Mapping[str, float | None], Plan], float | None]:
    def value(numbers: Mapping[str, float | None], plan: Plan) -> float | None:
        number = numbers.get(name)
        return None if number is None else math.log2(max(number, least))

    return value


def _plain_of(name: str) -> Callable[[Mapping[str, float | None], Plan], float | None]:
    return lambda numbers, plan: numbers.get(name)


def _labels(numbers: Mapping[str, float | None], plan: Plan) -> float | None:
    share = numbers.get("label_share")
    return None if not share else math.log2(share * plan.tokens)


#: A larger limit of the gradient norm clips next to nothing.
_CLIPS = 5.0
#: Every feature by key; the shipped model names those that it uses, and scripts/evaluate_risk.py compares sets of them.
FEATURES: dict[str, Feature] = {
    one.key: one
    for one in (
        Feature("critical_lr", "critical learning rate of the first step", _log2("critical_lr"), shown=_power),
        Feature("coordinate_lr", "learning rate that changes a block's output by 10%", _log2("coordinate_lr"), shown=_power),
        Feature("near_unit_mass", "near-unit mass", _plain_of("near_unit_mass")),
        Feature("near_unit_mass_max", "near-unit mass of the layer that has most", _plain_of("near_unit_mass_max")),
        Feature("without_curvature", "share of the steps without positive curvature", _plain_of("without_curvature")),
        Feature("block_growth", "largest growth of the residual stream in one block", _log2("block_growth"), shown=_power),
        Feature("weight_rms", "root mean square of the weights", _log2("weight_rms"), shown=_power),
        Feature("spectral_radius", "spectral radius", _log2("spectral_radius"), shown=_power),
        Feature("nonlinearity_ratio", "nonlinearity ratio", _plain_of("nonlinearity_ratio")),
        Feature("eigenvector_condition", "eigenvector condition", _log2("eigenvector_condition_max"), shown=_power),
        Feature("residual_growth", "growth of the residual stream", _log2("residual_growth"), shown=_power),
        Feature("gradient_norm", "gradient norm", _log2("gradient_norm"), shown=_power),
        Feature("depth", "number of layers", _log2("depth"), shown=_power),
        Feature("width", "width", _log2("width"), shown=_power),
        Feature("warmup_share", "share of the steps that are warm-up", lambda numbers, plan: plan.warmup / plan.steps),
        Feature("steps", "steps of the run", lambda numbers, plan: math.log2(plan.steps), shown=_power),
        Feature(
            "decays",
            "learning rate decays",
            lambda numbers, plan: float(SCHEDULES[plan.schedule] == "decays"),
            otherwise="learning rate stays constant",
        ),
        Feature(
            "clip",
            "gradients are clipped",
            lambda numbers, plan: float(plan.clip is not None and plan.clip <= _CLIPS),
            otherwise="gradients are not clipped",
        ),
        Feature(
            "beta2",
            "steps that Adam's second moment remembers",
            lambda numbers, plan: -math.log2(1 - min(plan.beta2, 0.9999)),
            shown=_power,
        ),
        Feature("decay", "weight decay", lambda numbers, plan: math.log2(1e-3 + plan.weight_decay), shown=lambda v: 2**v - 1e-3),
        Feature("muon", "Muon", lambda numbers, plan: float(OPTIMIZERS.get(plan.optimizer) == "muon"), otherwise="AdamW"),
        Feature("tokens", "tokens per step", lambda numbers, plan: math.log2(plan.tokens), shown=_power),
        Feature("labels", "labels that a step is asked for", _labels, shown=_power),
        Feature("lora", "LoRA", _plain_of("lora"), otherwise="all weights are trained"),
        Feature("bfloat16", "bfloat16", lambda numbers, plan: float(plan.dtype == "bfloat16"), otherwise="float32"),
    )
}  # fmt: skip
