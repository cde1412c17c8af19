"""Profile -> verdict, by the paper's thresholds (RKSP appendix J, Fig. 7), with reasons and interval.

The thresholds are not calibrated. They were set on models at initialisation, and healthy pretrained models lie in their "high"
band (LLaMA-2-7B at .61 to .74 in the paper's Table 10). For models to which they do not apply there is no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from hf_rksp.config import RiskConfig
from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.model import ModelProfile
from hf_rksp.spectral.dmd import in_sample_error_bias

Band = Literal["low", "elevated", "high", "not_assessable"]
Outcome = Literal["pass", "warn", "fail", "info"]

#: The reason in a verdict without an interval.
NO_INTERVAL = "No interval: fewer than four groups of sequences, or standard errors were switched off."


@dataclass(frozen=True)
class Check:
    """One check: a value, its threshold, the outcome, the layers concerned, and what to do.

    Attributes:
        id: stable name.
        title: one line.
        value: what was measured.
        threshold: in words.
        outcome: "pass", "warn", "fail", or "info" if the check takes no part in the verdict.
        layers: paths of the layers concerned.
        remedy: what to do; empty for a pass.
    """

    id: str
    title: str
    value: float | None
    threshold: str
    outcome: Outcome
    layers: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """Band of risk, and the reasons for it.

    Attributes:
        band: "low", "elevated", "high" or "not_assessable".
        band_by_thresholds: band by the thresholds alone, also if ``band`` is "not_assessable"; ``None`` without a score.
        score: mean near-unit mass over the informative layers.
        interval: 95% interval of the score (jackknife over sequences), or ``None``.
        reasons: sentences that lead to the band.
        conditions: for which models the verdict holds, and what it does not say.
        thresholds: the numbers used, by the names of `RiskConfig`.
        checks: see `Check`.
    """

    band: Band
    band_by_thresholds: Band | None
    score: float | None
    interval: tuple[float, float] | None
    reasons: tuple[str, ...]
    conditions: tuple[str, ...]
    thresholds: dict[str, float]
    checks: tuple[Check, ...]


CONDITIONS = (
    "The near-unit mass does not depend on the learning rate: it cannot say at which learning rate this model diverges.",
    "The published AUROC (.995) separates normalisation types from each other, not good runs from bad ones of one model.",
    "The thresholds are the paper's and are not calibrated: no probability of divergence follows from the band.",
)

#: A further condition, if the profile does not say where its weights come from.
NOT_STATED = "It was not stated whether the weights are trained; the verdict assumes random initialisation."


def assess(profile: ModelProfile, config: RiskConfig | None = None) -> Verdict:
    """What the thresholds say about a profile.

    Args:
        profile: ``profile.model["source"]`` is "initialised" or "pretrained". Without it the weights are taken as
            initialised, and the verdict says so.
        config: thresholds.
    """
    config = config or RiskConfig()
    layers, aggregates, source = profile.layers, profile.aggregates, profile.model.get("source")
    informative = [layer for layer in layers if not layer.uninformative]
    score = aggregates["near_unit_mass"]["mean"] if informative else None
    interval = aggregates["near_unit_mass"]["interval"] if informative else None
    condition = max((layer.eigenvector_condition for layer in informative), default=0.0)
    by_thresholds: Band | None = None
    reasons: list[str] = []
    if score is not None:
        by_thresholds, reasons = _band(score, interval, condition, config)
    refusals = []
    if source == "pretrained":
        refusals.append(
            "The weights are trained. The thresholds were set at initialisation and do not carry over (the paper's own LLaMA-2-7B, "
            "a healthy model, lies above them): the numbers describe this model and carry no verdict."
        )
    if len(informative) < config.assessable_share * len(layers):
        refusals.append(
            f"{len(layers) - len(informative)} of {len(layers)} layers are identity blocks (their update is below rounding or "
            "the set threshold). Identity blocks always have near-unit modes, which are harmless, so these layers carry no "
            "information. Profile again after a few training steps."
        )
    fewest = min(layer.rank for layer in layers)
    if fewest < config.least_modes:
        refusals.append(
            f"One layer has only {fewest} modes, fewer than {config.least_modes}: too few for a share of modes. Pass more tokens."
        )
    if reasons and any(layer.mode == "projected" for layer in informative):
        reasons.append(
            f"The states are projected on {_span(fewest, max(layer.rank for layer in layers))} of "
            f"{max(layer.dim for layer in layers)} directions. Modes outside are not counted."
        )
    if refusals and reasons:
        reasons[0] = f"By the thresholds alone: {reasons[0][0].lower()}{reasons[0][1:]}"
    band: Band = "not_assessable" if refusals or by_thresholds is None else by_thresholds
    conditions = CONDITIONS if source else (*CONDITIONS, NOT_STATED)
    return Verdict(
        band=band,
        band_by_thresholds=by_thresholds,
        score=score,
        interval=interval,
        reasons=(*refusals, *reasons),
        conditions=conditions,
        thresholds=asdict(config),
        checks=_checks(layers, informative, score, condition, config),
    )


def _span(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def _band(
    score: float, interval: tuple[float, float] | None, condition: float, config: RiskConfig
) -> tuple[Band, list[str]]:
    safe, high, large = config.safe_near_unit_mass, config.high_near_unit_mass, config.large_eigenvector_condition
    band: Band
    if score > high:
        band, reasons = "high", [f"Mean near-unit mass {score:.3f} is above {high:g} (paper: high risk)."]
    elif score < safe:
        band, reasons = "low", [f"Mean near-unit mass {score:.3f} is below {safe:g} (paper: safe)."]
    else:
        band, reasons = "elevated", [f"Mean near-unit mass {score:.3f} lies between {safe:g} and {high:g}."]
    if condition > large:
        reasons.append(f"Largest eigenvector condition {condition:.3g} is above {large:g}: strongly non-normal.")
        band = "high"
    for threshold in (safe, high):
        if interval and interval[0] <= threshold <= interval[1]:
            reasons.append(
                f"The 95% interval {interval[0]:.3f} to {interval[1]:.3f} contains the threshold {threshold:g}: the band may "
                "differ on other text. More tokens narrow the interval."
            )
    if interval is None:
        reasons.append(NO_INTERVAL)
    return band, reasons


def _checks(
    layers: Sequence[LayerProfile],
    informative: Sequence[LayerProfile],
    score: float | None,
    condition: float,
    config: RiskConfig,
) -> tuple[Check, ...]:
    safe, high, large = config.safe_near_unit_mass, config.high_near_unit_mass, config.large_eigenvector_condition
    near = [layer.path for layer in informative if layer.near_unit_mass > high]
    non_normal = [layer.path for layer in informative if layer.eigenvector_condition > large]
    identity = [layer.path for layer in layers if layer.uninformative]
    per_direction = min(layer.samples / layer.rank for layer in layers)
    projected = [layer.path for layer in layers if layer.mode == "projected"]
    reliability = sum(layer.reliable_fraction for layer in informative) / len(informative) if informative else None
    return (
        Check(
            "near_unit_mass",
            "Share of modes that neither grow nor decay",
            score,
            f"below {safe:g} pass, above {high:g} fail",
            "info" if score is None else "pass" if score < safe else "fail" if score > high else "warn",
            tuple(near),
            ""
            if score is None or score < safe
            else "Normalise the input of blocks that have no norm. A lower learning rate is always the safe choice.",
        ),
        Check(
            "eigenvector_condition",
            "Non-normality of the modes (largest layer)",
            condition if informative else None,
            f"below {large:g} (our number: the paper says 'large' without one)",
            "info" if not informative else "fail" if non_normal else "pass",
            tuple(non_normal),
            "Small perturbations may be amplified far beyond the spectral radius: compare initialisations."
            if non_normal
            else "",
        ),
        Check(
            "identity_blocks",
            "Blocks whose update vanishes",
            float(len(identity)),
            "none",
            "warn" if identity else "pass",
            tuple(identity),
            "Left out of every aggregate. Profile again after a few training steps." if identity else "",
        ),
        Check(
            "tokens_per_direction",
            "Tokens per direction",
            per_direction,
            "at least 4",
            "pass" if per_direction >= 4 else "warn",
            (),
            ""
            if per_direction >= 4
            else "With few tokens noise widens the spectrum, and the error of the fit (nonlinearity ratio, residuals) is too low "
            f"by about {in_sample_error_bias(per_direction):.0%}: raise --tokens and compare.",
        ),
        Check(
            "projection",
            "Layers measured on fewer directions than their width",
            float(len(projected)),
            "none",
            "warn" if projected else "pass",
            tuple(projected),
            "Modes outside the leading directions are not counted: raise --tokens to twice the width for full mode."
            if projected
            else "",
        ),
        Check(
            "reliable_fraction",
            "Share of modes that pass the ResDMD filter",
            reliability,
            "described, not judged",
            "info",
            (),
            "If it is low, a linear map does not resolve most modes: read the filtered masses with their denominators.",
        ),
    )
