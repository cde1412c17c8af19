"""The moments of one layer -> its line in the profile, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.quantities import QUANTITIES, SHARES, UNESTIMABLE
from hf_rksp.spectral import (
    KreissBracket,
    Masses,
    SecondMoments,
    jackknife,
    merge_all,
    smoothed_masses,
    spectrum,
    spectrum_for_errors,
    standard_error,
    whitened_dmd,
)

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
            there were fewer than four groups of sequences. The condition number has none: it cannot be estimated so.
        replicates: quantity -> its leave-one-group-out values; those of the masses have soft band edges.
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
    depth: float,
    path: str,
    rank: int | Literal["auto", "full"],
    standard_errors: bool,
    config: SpectralConfig,
) -> LayerProfile:
    """Spectrum and standard errors of a block from the moments of its groups of sequences.

    ``depth`` is its place in the stack, from 0 for the first block to 1 for the last.
    """
    total = merge_all(groups)
    operator = whitened_dmd(total, rank, config)
    result = spectrum(operator, config)
    assert result.kreiss_constant is not None  # None only if it is not asked for
    asked = operator.rank + operator.dropped

    def replicate(moments: SecondMoments) -> dict[str, float]:
        # The replicates keep the rank of the whole: leaving tokens out must not change what is estimated.
        found = spectrum_for_errors(whitened_dmd(moments, asked, config, check_tokens=False), config)
        return {name: found[name] for name in QUANTITIES if name not in UNESTIMABLE}

    replicates: dict[str, list[float]] = {}
    if standard_errors and len(groups) >= MIN_GROUPS:
        replicates = jackknife(groups, replicate)
    values = {name: getattr(result.masses if name.endswith("_mass") else result, name) for name in QUANTITIES}
    edges = smoothed_masses(result.eigenvalues, config)[1]
    errors = {
        name: math.hypot(standard_error(replicate), math.sqrt(getattr(edges, name, 0.0)))
        for name, replicate in replicates.items()
    }
    return LayerProfile(
        index=index,
        stack=stack,
        path=path,
        depth=depth,
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
        intervals={name: interval(name, values[name], error, len(groups)) for name, error in errors.items()},
        replicates=replicates,
        eigenvalues=result.eigenvalues,
        residuals=result.residuals,
        **values,
    )


def interval(name: str, value: float, error: float, groups: int) -> tuple[float, float]:
    """95% interval ``value -+ t(groups - 1) * error``, within what is possible for the quantity.

    It covers the choice of text. It does not cover what all text of this length has in common: see the bias of
    ``nonlinearity_ratio`` by few tokens.
    """
    half = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * error
    low, high = max(value - half, 0.0), value + half
    return low, min(high, 1.0) if name in SHARES else high
