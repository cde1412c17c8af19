"""What single precision does to the quantities that need eigenvalues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.spectral.dmd import WhitenedOperator
from hf_rksp.spectral.spectrum import band_probabilities

_BANDS = ("expansive_mass", "near_unit_mass", "contractive_mass", "intermediate_mass")
#: Largest moduli whose rounding speaks for that of the spectral radius: one alone may be close by luck.
_OUTER = 16


def rounding_deviation(operator: WhitenedOperator, eigenvalues: Tensor, config: SpectralConfig) -> dict[str, float]:
    """Standard deviation that eigenvalues in float32 add to each quantity of `spectrum_for_errors` that needs them.

    The difference between a quantity in both precisions would be one draw, and zero by luck. So the deviation comes from the
    differences between single moduli in both precisions, sorted and taken as independent: for the masses all moduli are moved by
    their root mean square, for the radius it is that of the outermost moduli. What all moduli have in common, such as a shift, is
    common to similar operators too and cancels in a jackknife.

    Args:
        operator: from `whitened_dmd`.
        eigenvalues: of its matrix in float64, shape ``(rank,)``, complex128.
        config: bands, and ``mass_smoothing``.

    Returns:
        Quantity -> deviation; ``inf`` for the departure of an operator that is normal up to rounding.

    >>> from hf_rksp.spectral import SecondMoments, whitened_dmd
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> moments = SecondMoments(2)
    >>> moments.update(x, x @ torch.diag(torch.tensor([2.0, 0.5])))  # float32 holds both eigenvalues exactly
    >>> eigenvalues = torch.tensor([2.0, 0.5], dtype=torch.complex128)
    >>> round(rounding_deviation(whitened_dmd(moments), eigenvalues, SpectralConfig())["spectral_radius"], 9)
    0.0
    """
    exact = eigenvalues.abs().sort(descending=True).values
    rounded = torch.linalg.eigvals(operator.matrix.float()).to(torch.complex128).abs().sort(descending=True).values
    differences = exact - rounded
    moved = exact + differences.square().mean().sqrt()
    pairs = zip(_BANDS, band_probabilities(exact, config), band_probabilities(moved, config), strict=True)
    deviations = {name: float((p - q).norm()) / operator.rank for name, p, q in pairs}
    deviations["spectral_radius"] = float(differences[:_OUTER].square().mean().sqrt())
    # Of sqrt(1 - S / F) with the sum S of squared moduli: dS / (2 F sqrt(1 - S / F)).
    frobenius_sq, squares = float(operator.matrix.square().sum()), exact.square()
    departure_sq = frobenius_sq - float(squares.sum())
    change = float((squares - rounded.square()).norm())
    deviations["henrici_departure"] = (
        change / (2 * math.sqrt(frobenius_sq * departure_sq)) if departure_sq > 0 else math.inf
    )
    return deviations
