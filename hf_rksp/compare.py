"""Two profiles side by side: what differs by more than its standard error, and whether they may be compared at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_rksp.profile import ModelProfile
from hf_rksp.quantities import QUANTITIES

#: What has to be equal for two profiles to be of the same kind: setup keys, with the part of the text that matters.
_SETUP = ("rank",)
_TEXT = ("source", "sequence_length", "tokens", "sha256")


@dataclass(frozen=True)
class Difference:
    """One quantity (mean over layers) in two profiles.

    Attributes:
        quantity: its name.
        first, second: the two means.
        difference: second - first.
        standard_error: of the difference, from both jackknives as if independent; NaN if one is missing.
        z: difference divided by its standard error.
        distinct: whether abs(z) is above 2; ``None`` without a standard error.
    """

    quantity: str
    first: float
    second: float
    difference: float
    standard_error: float
    z: float
    distinct: bool | None


@dataclass(frozen=True)
class Comparison:
    """Differences of all quantities, and ``caveats``: settings that differ, which make the comparison doubtful."""

    differences: tuple[Difference, ...]
    caveats: tuple[str, ...]


def compare_profiles(first: ModelProfile, second: ModelProfile) -> Comparison:
    """Compare the means over layers of ``second`` with those of ``first``.

    Both profiles saw the same text if their caveats do not say otherwise; the errors are then positively correlated, so
    the standard error of the difference given here is, if anything, too large.
    """
    return Comparison(
        tuple(_difference(name, first, second) for name in QUANTITIES),
        tuple(_caveats(first, second)),
    )


def _difference(name: str, first: ModelProfile, second: ModelProfile) -> Difference:
    a, b = first.aggregates[name], second.aggregates[name]
    difference = b["mean"] - a["mean"]
    error = math.hypot(a["standard_error"], b["standard_error"])
    if math.isnan(error) or math.isnan(difference):
        return Difference(name, a["mean"], b["mean"], difference, error, math.nan, None)
    z = difference / error if error > 0 else math.copysign(math.inf, difference) if difference else 0.0
    return Difference(name, a["mean"], b["mean"], difference, error, z, abs(z) > 2)


def _caveats(first: ModelProfile, second: ModelProfile) -> list[str]:
    found = []
    pairs: list[tuple[str, Any, Any]] = [(name, first.setup.get(name), second.setup.get(name)) for name in _SETUP]
    pairs.append(("spectral_config", _bands(first), _bands(second)))
    texts = first.setup.get("text") or {}, second.setup.get("text") or {}
    pairs += [(f"text {name}", texts[0].get(name), texts[1].get(name)) for name in _TEXT]
    pairs += [
        ("modes a layer", _modes(first), _modes(second)),
        ("source", first.model.get("source"), second.model.get("source")),
    ]
    for name, a, b in pairs:
        if a != b:
            found.append(f"{name} differs: {_short(a)} and {_short(b)}")
    return found


def _bands(profile: ModelProfile) -> dict[str, Any]:
    """Bands and cutoffs, without the precision of the replicates: that leaves the standard errors as they are."""
    config = profile.setup.get("spectral_config") or {}
    return {name: value for name, value in config.items() if name != "replicate_precision"}


def _modes(profile: ModelProfile) -> list[int]:
    return sorted({layer.mass_denominator for layer in profile.layers})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
