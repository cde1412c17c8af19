"""The moments of one layer -> its line in the profile, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.profile.replicates import NO_REPLICATES, replicate
from hf_rksp.quantities import QUANTITIES, SHARES
from hf_rksp.spectral import (
    KreissBracket,
    Masses,
    SecondMoments,
    merge_all,
    spectrum,
    whitened_dmd,
)

#: Fewer groups than this make a standard error worthless.
MIN_GROUPS = 4
CONFIDENCE = 0.95


@dataclass(frozen=True)
class LayerProfile:
    """One transition h_l -> h_{l+1}. Quantities as in `hf_rksp.spectral.Spectrum`; NaN if not defined.

    Attributes:
        index: position in the stack.
        stack: path of the list of blocks.
        path: path of the block.
        depth: relative depth, 0 at the first block and 1 at the last.
        tokens: tokens counted.
        samples: their effective number.
        dim: width of the states.
        rank: kept directions.
        mode: "full" or "projected".
        rank_reason: why this rank, in words.
        dropped_directions: directions below the relative cutoff.
        condition: condition number of the centred states (singular values).
        input_energy, output_energy: share of the variance of x and of y inside the kept directions.
        mass_denominator: number of modes that the masses count.
        filtered_masses: masses over the modes that pass the ResDMD filter.
        standard_errors: quantity -> jackknife standard error; empty with fewer than four groups of sequences. The jackknife cannot
            estimate the error of the condition number.
        intervals: quantity -> 95% interval (Student's t); empty in the same cases.
        replicates: quantity -> leave-one-group-out values; for the masses with soft band edges.
        eigenvalues, residuals: shape ``(rank,)``, complex128 and float64.
        replicate_dtype: ``"float32"`` if the eigenvalues in ``replicates`` are in single precision (`hf_rksp.profile.replicates`).
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
    replicate_dtype: Literal["float32", "float64"] = "float64"


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
    jackknifed = NO_REPLICATES
    if standard_errors and len(groups) >= MIN_GROUPS:
        jackknifed = replicate(groups, operator, result.eigenvalues, config)
    values = {name: getattr(result.masses if name.endswith("_mass") else result, name) for name in QUANTITIES}
    errors = jackknifed.standard_errors
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
        replicates=jackknifed.values,
        eigenvalues=result.eigenvalues,
        residuals=result.residuals,
        replicate_dtype=jackknifed.dtype,
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
