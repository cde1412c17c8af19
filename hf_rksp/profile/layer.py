"""The moments of one layer -> its line in the profile, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student_t
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.spectral import (
    KreissBracket,
    Masses,
    SecondMoments,
    Spectrum,
    jackknife,
    merge_all,
    spectrum,
    standard_error,
    whitened_dmd,
)

#: The scalar quantities of a layer that are aggregated over depth and carry a standard error.
QUANTITIES = (
    "near_unit_mass",
    "expansive_mass",
    "contractive_mass",
    "intermediate_mass",
    "spectral_radius",
    "eigenvector_condition",
    "nonlinearity_ratio",
    "reliable_fraction",
    "henrici_departure",
    "relative_update",
)
#: Quantities that are shares, so their intervals stay within 0 and 1.
SHARES = (*(name for name in QUANTITIES if name.endswith(("_mass", "_fraction"))), "henrici_departure")
LOGARITHMIC = ("eigenvector_condition",)
#: Fewer groups than this make a standard error worthless.
MIN_GROUPS = 4
CONFIDENCE = 0.95


@dataclass(frozen=True)
class LayerProfile:
    """One transition h_l -> h_{l+1}. Quantities as in `hf_rksp.spectral.Spectrum`; NaN where one is not defined.

    Attributes:
        index, stack, path: position in the stack, path of the stack's list, path of the block.
        depth: relative depth, 0 at the first block and 1 at the last.
        tokens, samples: tokens counted, and their effective number.
        dim, rank, mode, rank_reason, dropped_directions: width, kept directions, why, and how many fell to the cutoff.
        condition: of the centred states (singular values); input_energy, output_energy: variance inside the kept rank.
        mass_denominator: number of modes that the masses count.
        filtered_masses: masses over the modes that pass the ResDMD filter.
        standard_errors, intervals: quantity -> jackknife standard error, and 95% interval (Student t); empty when
            there were fewer than four groups of sequences.
        replicates: quantity -> its leave-one-group-out values.
        eigenvalues, residuals: shape ``(rank,)``, complex128 and float64.
    """

    index: int
    stack: str
    path: str
    depth: float
    dim: int
    tokens: int
    samples: float
    rank: int
    mode: Literal["full", "projected"]
    rank_reason: str
    dropped_directions: int
    condition: float
    input_energy: float
    output_energy: float
    near_unit_mass: float
    expansive_mass: float
    contractive_mass: float
    intermediate_mass: float
    mass_denominator: int
    filtered_masses: Masses
    spectral_radius: float
    eigenvector_condition: float
    nonlinearity_ratio: float
    reliable_fraction: float
    henrici_departure: float
    kreiss_constant: KreissBracket
    relative_update: float
    uninformative: bool
    standard_errors: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    replicates: dict[str, list[float]]
    eigenvalues: Tensor
    residuals: Tensor


def profile_layer(
    groups: Sequence[SecondMoments],
    *,
    stack: str,
    index: int,
    blocks: int,
    path: str,
    rank: int | Literal["auto", "full"],
    standard_errors: bool,
    config: SpectralConfig,
) -> LayerProfile:
    """Spectrum and standard errors of the block ``index`` of ``blocks`` from the moments of its groups of sequences."""
    total = merge_all(groups)
    operator = whitened_dmd(total, rank, config)
    result = spectrum(operator, config)
    asked = operator.rank + operator.dropped

    def scalars(moments: SecondMoments) -> dict[str, float]:
        # The replicates keep the rank of the whole: leaving tokens out must not change what is estimated.
        replicate = whitened_dmd(moments, asked, config, check_tokens=False)
        return _scalars(spectrum(replicate, config, kreiss=False))

    replicates: dict[str, list[float]] = {}
    if standard_errors and len(groups) >= MIN_GROUPS:
        replicates = jackknife(groups, scalars)
    values = _scalars(result)
    errors = {name: standard_error(replicate) for name, replicate in replicates.items()}
    return LayerProfile(
        index=index,
        stack=stack,
        path=path,
        depth=index / (blocks - 1) if blocks > 1 else 0.0,
        dim=operator.dim,
        tokens=total.count,
        samples=operator.samples,
        rank=operator.rank,
        mode=operator.mode,
        rank_reason=operator.reason,
        dropped_directions=operator.dropped,
        condition=operator.condition,
        input_energy=operator.input_energy,
        output_energy=operator.output_energy,
        mass_denominator=result.masses.denominator,
        filtered_masses=result.filtered_masses,
        kreiss_constant=result.kreiss_constant,
        uninformative=result.uninformative,
        standard_errors=errors,
        intervals={name: interval(name, values[name], replicate) for name, replicate in replicates.items()},
        replicates=replicates,
        eigenvalues=result.eigenvalues,
        residuals=result.residuals,
        **values,
    )


def interval(name: str, value: float, replicates: Sequence[float]) -> tuple[float, float]:
    """95% interval ``value -+ t(g - 1) * standard error`` from the g leave-one-out values.

    Shares are cut to [0, 1]. Condition numbers spread over powers of ten, so theirs is taken on the logarithm.
    """
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(replicates) - 1))
    if name in LOGARITHMIC and value > 0 and all(replicate > 0 for replicate in replicates):
        factor = math.exp(quantile * standard_error([math.log(replicate) for replicate in replicates]))
        return value / factor, value * factor
    half = quantile * standard_error(replicates)
    low, high = value - half, value + half
    return (max(low, 0.0), min(high, 1.0)) if name in SHARES else (low, high)


def _scalars(result: Spectrum) -> dict[str, float]:
    return {name: getattr(result.masses if name.endswith("_mass") else result, name) for name in QUANTITIES}
