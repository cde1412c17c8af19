"""What was measured before the first step, as plain numbers that do not depend on the planned learning rate."""

from __future__ import annotations

import math
from typing import Any

from hf_rksp.profile.model import ModelProfile
from hf_rksp.profile.signals import ForwardSignals
from hf_rksp.profile.step import StepMeasurement, Summary

#: A number that was measured, or ``None`` if it could not be.
Numbers = dict[str, float | None]


def numbers_of(profile: ModelProfile, signals: ForwardSignals, step: StepMeasurement) -> Numbers:
    """The measurements of one model in one flat mapping.

    Names that end in ``_lr`` are learning rates. ``critical_lr`` is the median over pairs of batches, ``critical_lr_spread`` the
    upper quartile per the lower one. Masses are means over the layers, and over the early and the late third of the depth.
    """
    means = {name: values["mean"] for name, values in profile.aggregates.items()}
    most = {name: values["max"] for name, values in profile.aggregates.items()}
    check = step.coordinate_check
    pairs = len(step.pairs)
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
        "loss": sum(step.losses) / len(step.losses),
        "gradient_norm": math.exp(
            sum(math.log(max(norm, 1e-30)) for norm in step.gradient_norms) / len(step.gradient_norms)
        ),
        "noise_scale": step.noise_scale,
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
        "depth": float(len(profile.layers)),
        "width": float(max((layer.dim for layer in profile.layers), default=0)),
        "tokens": float(profile.cost["tokens"]) if "tokens" in profile.cost else None,
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
