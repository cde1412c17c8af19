"""Whitened operator -> the quantities of RKSP's table (section 3.2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.spectral.dmd import WhitenedOperator
from hf_rksp.spectral.kreiss import KreissBracket, kreiss_constant
from hf_rksp.spectral.modal import modal_basis


@dataclass(frozen=True)
class Masses:
    """Shares of the modes by modulus. They add up to 1, or are all NaN if no mode was counted.

    Attributes:
        expansive_mass: M_{>1}.
        near_unit_mass: M_{~1}, the risk score.
        contractive_mass: M_{<1}.
        intermediate_mass: M_mid, the rest.
        denominator: number of modes counted.
    """

    expansive_mass: float
    near_unit_mass: float
    contractive_mass: float
    intermediate_mass: float
    denominator: int


@dataclass(frozen=True)
class Spectrum:
    """Spectral quantities of one transition.

    Attributes:
        eigenvalues: shape ``(k,)``, complex128.
        residuals: ResDMD residual of each (Eq. 10), shape ``(k,)``, in the same order; ``inf`` for a defective operator.
        masses: over all k modes.
        filtered_masses: over the modes whose residual is at most ``residual_tolerance``.
        spectral_radius: rho, largest modulus.
        eigenvector_condition: kappa(V), unit-length eigenvectors, 2-norm; ``inf`` for a defective operator.
        nonlinearity_ratio: eta_nl (Eq. 5), error of the linear fit divided by the size of the update, both whitened; NaN if the
            update vanishes. Like any in-sample error it is too low, by a factor of about ``sqrt(1 - rank / tokens)``; so are the
            residuals. The departure from normality is too high for the same reason.
        reliable_fraction: share of the modes that pass the residual filter.
        henrici_departure: ``sqrt(||A||_F^2 - sum |lambda|^2) / ||A||_F``: 0 for a normal operator, below 1 always.
        kreiss_constant: bracket (Eq. 29, 31), or ``None`` if it was not requested.
        relative_update: ``||Yt - Xt||_F / ||Xt||_F``.
        uninformative: the block is the identity up to rounding; its masses say nothing about risk.
    """

    eigenvalues: Tensor
    residuals: Tensor
    masses: Masses
    filtered_masses: Masses
    spectral_radius: float
    eigenvector_condition: float
    nonlinearity_ratio: float
    reliable_fraction: float
    henrici_departure: float
    kreiss_constant: KreissBracket | None
    relative_update: float
    uninformative: bool


def spectral_masses(eigenvalues: Tensor, config: SpectralConfig | None = None) -> Masses:
    """Shares of ``eigenvalues`` (shape ``(m,)``, real or complex) in the bands of RKSP section 3.2.2.

    >>> spectral_masses(torch.tensor([1.2, 1.0, 0.85, 0.1]))
    Masses(expansive_mass=0.25, near_unit_mass=0.25, contractive_mass=0.25, intermediate_mass=0.25, denominator=4)
    """
    config = config or SpectralConfig()
    moduli = eigenvalues.abs()
    total = moduli.numel()
    if total == 0:
        return Masses(math.nan, math.nan, math.nan, math.nan, 0)
    upper, lower = 1 + config.expansive_margin, 1 - config.near_unit_margin
    expansive = int((moduli > upper).sum())
    near_unit = int(((moduli >= lower) & (moduli <= upper)).sum())
    contractive = int((moduli < 1 - config.contractive_margin).sum())
    rest = total - expansive - near_unit - contractive
    return Masses(expansive / total, near_unit / total, contractive / total, rest / total, total)


def smoothed_masses(eigenvalues: Tensor, config: SpectralConfig | None = None) -> tuple[Masses, Masses]:
    """The masses with soft band edges, and the variance that the hard edges add to each: for standard errors.

    A jackknife needs an estimate that moves smoothly with the data. The leave-one-out values of a count jump by whole modes:
    their spread is about twice the true error, or zero if no mode happens to cross an edge. With edges that are logistic curves of
    width ``mass_smoothing`` a mode is in a band with probability p; the jackknife of the sum of p, and ``sum p (1 - p)`` for
    modes that may fall to either side, make an error that is about right (``scripts/coverage``).

    Returns:
        The soft masses, and their variances as `Masses` too.

    >>> soft, variance = smoothed_masses(torch.tensor([1.05]))  # a mode on the edge is on either side with probability 1/2
    >>> round(soft.expansive_mass, 6), round(variance.expansive_mass, 6)
    (0.5, 0.25)
    """
    total = eigenvalues.numel()
    inside = band_probabilities(eigenvalues.abs(), config or SpectralConfig())
    soft = [float(p.mean()) for p in inside]
    spread = [float((p * (1 - p)).sum()) / total**2 for p in inside]
    return Masses(soft[0], soft[1], soft[2], soft[3], total), Masses(spread[0], spread[1], spread[2], spread[3], total)


def band_probabilities(moduli: Tensor, config: SpectralConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probability of each mode to be expansive, near-unit, contractive, intermediate, with the soft edges of `smoothed_masses`.

    ``moduli`` and each of the four have shape ``(m,)``. The four add up to 1.

    >>> expansive, near_unit, contractive, intermediate = band_probabilities(torch.tensor([1.05]), SpectralConfig())
    >>> round(float(expansive), 6), round(float(near_unit), 6)  # on the edge between the two
    (0.5, 0.5)
    """
    edges = (1 + config.expansive_margin, 1 - config.near_unit_margin, 1 - config.contractive_margin)
    above = [torch.sigmoid((moduli - edge) / config.mass_smoothing) for edge in edges]
    return above[0], above[1] - above[0], 1 - above[2], above[2] - above[1]


def spectrum(operator: WhitenedOperator, config: SpectralConfig | None = None, kreiss: bool = True) -> Spectrum:
    """All quantities of one transition.

    Args:
        operator: from `whitened_dmd`.
        config: bands, residual tolerance and the threshold of `Spectrum.uninformative`.
        kreiss: also search for the Kreiss constant (about a fifth of the time).

    >>> from hf_rksp.spectral import SecondMoments, whitened_dmd
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> moments = SecondMoments(2)
    >>> moments.update(x, x @ torch.diag(torch.tensor([2.0, 0.5])))  # y = A x with A = diag(2, 1/2)

    >>> result = spectrum(whitened_dmd(moments))
    >>> round(result.spectral_radius, 9), result.masses.expansive_mass, result.masses.contractive_mass
    (2.0, 0.5, 0.5)
    >>> round(result.eigenvector_condition, 9), round(result.relative_update**2, 9)  # (1^2 + (1/2)^2) / 2 for the update
    (1.0, 0.625)
    """
    config = config or SpectralConfig()
    matrix = operator.matrix
    modal = modal_basis(matrix)
    eigenvalues, moduli = modal.eigenvalues, modal.eigenvalues.abs()
    condition = modal.condition
    if modal.real_inverse is None:
        residuals = torch.full_like(moduli, math.inf)
    else:
        # ||u*(Yt - lambda Xt)||^2 = u* Gyy u - |lambda|^2 u* u, since u* A = lambda u* and Xt Xt^T = I.
        inner = modal.left_quadratic(operator.quadratic_y) / modal.left_norms().square()
        residuals = (inner - moduli.square()).clamp_min(0).sqrt()
    reliable = residuals <= config.residual_tolerance
    ratios = _ratios(operator, eigenvalues)
    return Spectrum(
        eigenvalues=eigenvalues,
        residuals=residuals,
        masses=spectral_masses(eigenvalues, config),
        filtered_masses=spectral_masses(eigenvalues[reliable], config),
        spectral_radius=float(moduli.max()),
        eigenvector_condition=condition,
        reliable_fraction=float(reliable.double().mean()),
        kreiss_constant=kreiss_constant(matrix, modal, condition) if kreiss else None,
        uninformative=math.isnan(ratios["nonlinearity_ratio"])
        or ratios["relative_update"] < config.uninformative_update,
        **ratios,
    )


def spectrum_for_errors(
    operator: WhitenedOperator, config: SpectralConfig | None = None, dtype: torch.dtype = torch.float64
) -> dict[str, float]:
    """The quantities that have a standard error, from eigenvalues and traces alone, in a third of the time.

    Condition and reliable fraction would need eigenvectors; they have no standard error (`hf_rksp.quantities`).

    Args:
        operator: from `whitened_dmd`.
        config: bands, and ``mass_smoothing``: the masses have soft edges (`smoothed_masses`).
        dtype: precision of the eigenvalues; float32 takes less than half the time. Traces and norms are in float64 always.

    >>> from hf_rksp.spectral import SecondMoments, whitened_dmd
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> moments = SecondMoments(2)
    >>> moments.update(x, x @ torch.diag(torch.tensor([2.0, 0.5])))  # y = A x with A = diag(2, 1/2)

    >>> values = spectrum_for_errors(whitened_dmd(moments))
    >>> round(values["spectral_radius"], 9), round(values["expansive_mass"], 9)
    (2.0, 0.5)
    """
    eigenvalues = torch.linalg.eigvals(operator.matrix.to(dtype)).to(torch.complex128)
    masses, _ = smoothed_masses(eigenvalues, config)
    shares = {name: value for name, value in vars(masses).items() if name.endswith("_mass")}
    return {**shares, "spectral_radius": float(eigenvalues.abs().max()), **_ratios(operator, eigenvalues)}


def _ratios(operator: WhitenedOperator, eigenvalues: Tensor) -> dict[str, float]:
    """What needs norms, traces and moduli alone."""
    matrix, trace_y, rank = operator.matrix, operator.trace_y, operator.rank
    frobenius_sq, moduli_sq = float(matrix.square().sum()), float(eigenvalues.abs().square().sum())
    update_sq = max(trace_y - 2 * float(matrix.trace()) + rank, 0.0)
    # Below this the difference of two nearly equal sums is rounding, not an update.
    vanishing = update_sq <= 1e-14 * (trace_y + rank)
    error_sq, departure_sq = max(trace_y - frobenius_sq, 0.0), max(frobenius_sq - moduli_sq, 0.0)
    return {
        "nonlinearity_ratio": math.nan if vanishing else math.sqrt(error_sq / update_sq),
        "henrici_departure": math.sqrt(departure_sq / frobenius_sq) if frobenius_sq > 0 else 0.0,
        "relative_update": math.sqrt(update_sq / rank),
    }


def eigenvalue_masses(operator: WhitenedOperator, config: SpectralConfig | None = None) -> tuple[Masses, float]:
    """Masses and spectral radius, without eigenvectors: the cheapest numbers for a transition.

    >>> from hf_rksp.spectral import SecondMoments, whitened_dmd
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> moments = SecondMoments(2)
    >>> moments.update(x, x @ torch.diag(torch.tensor([2.0, 0.5])))  # y = A x with A = diag(2, 1/2)

    >>> masses, radius = eigenvalue_masses(whitened_dmd(moments))
    >>> masses.expansive_mass, round(radius, 9)
    (0.5, 2.0)
    """
    eigenvalues = torch.linalg.eigvals(operator.matrix)
    return spectral_masses(eigenvalues, config), float(eigenvalues.abs().max())
