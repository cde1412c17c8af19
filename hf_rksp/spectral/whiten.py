"""Whitening of a covariance C: ``W^T C W = I``, by Cholesky where no direction is dropped, else by principal directions.

The two differ by a rotation of the whitened coordinates, which no quantity of the spectrum sees. Cholesky costs a tenth of the
eigenvectors, and its rounding error is no larger: both are of the order of ``eps`` times the condition of C.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_rksp.spectral.norm import largest_eigenvalue

#: Cholesky is used up to this share of the condition at which directions are dropped, so it never decides what is dropped.
_MARGIN = 1e-2


@dataclass(frozen=True)
class CholeskyWhitening:
    """``W = L^{-T}`` with ``C = L L^T``.

    Attributes:
        covariance, factor, inverse: C, L and ``C^{-1}``, shape ``(d, d)``.
    """

    covariance: Tensor
    factor: Tensor
    inverse: Tensor

    @property
    def rank(self) -> int:
        """Number of whitened coordinates."""
        return len(self.factor)

    @property
    def condition(self) -> float:
        """Largest over smallest variance of the kept directions."""
        return largest_eigenvalue(self.covariance) * largest_eigenvalue(self.inverse)

    @property
    def variance(self) -> float:
        """Variance in the kept directions."""
        return float(self.covariance.trace())

    def congruence(self, matrix: Tensor) -> Tensor:
        """``W^T matrix W``, shape ``(rank, rank)``."""
        half = torch.linalg.solve_triangular(self.factor, matrix, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(self.factor.T, half, upper=True, left=False)
        return whole

    def trace(self, symmetric: Tensor) -> float:
        """Trace of ``W^T symmetric W``."""
        return float((self.inverse * symmetric).sum())

    def inside(self, symmetric: Tensor) -> float:
        """Trace of ``symmetric`` in the kept directions."""
        return float(symmetric.trace())

    def unwhitened(self, rows: Tensor) -> Tensor:
        """``rows W^T``: functionals of whitened states as functionals of states, shape ``(m, d)``."""
        found: Tensor = torch.linalg.solve_triangular(self.factor, rows, upper=False, left=False)
        return found


@dataclass(frozen=True)
class PrincipalWhitening:
    """``W = directions / sqrt(variances)``; methods as those of `CholeskyWhitening`.

    Attributes:
        directions, variances: shapes ``(d, rank)`` and ``(rank,)``, largest variance first.
    """

    directions: Tensor
    variances: Tensor

    @property
    def rank(self) -> int:  # noqa: D102
        return len(self.variances)

    @property
    def condition(self) -> float:  # noqa: D102
        return float(self.variances[0] / self.variances[-1])

    @property
    def variance(self) -> float:  # noqa: D102
        return float(self.variances.sum())

    @cached_property
    def _whitener(self) -> Tensor:
        return self.directions * self.variances.rsqrt()

    def congruence(self, matrix: Tensor) -> Tensor:  # noqa: D102
        return self._whitener.T @ (matrix @ self._whitener)

    def trace(self, symmetric: Tensor) -> float:  # noqa: D102
        return float((self._whitener * (symmetric @ self._whitener)).sum())

    def inside(self, symmetric: Tensor) -> float:  # noqa: D102
        return float((self.directions * (symmetric @ self.directions)).sum())

    def unwhitened(self, rows: Tensor) -> Tensor:  # noqa: D102
        return rows @ self._whitener.T


def cholesky_whitening(covariance: Tensor, rcond: float, floor: float) -> CholeskyWhitening | None:
    """Whitening with all directions, or ``None`` if one may have to be dropped or the variances may be below ``floor``.

    ``trace(C) trace(C^{-1})`` is an upper bound of the condition of C.

    >>> covariance = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    >>> whitening = cholesky_whitening(covariance, rcond=1e-12, floor=0.0)
    >>> whitening.congruence(covariance).diagonal().tolist()  # W^T C W = I
    [1.0, 1.0]
    >>> cholesky_whitening(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), rcond=1e-12, floor=0.0) is None
    True
    """
    total = float(covariance.trace())
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    # The pivots bound the condition from below, which spares the inverse of most matrices that are singular.
    if int(info) != 0 or not total > floor * len(covariance) or not pivots.max() / pivots.min() < _MARGIN / rcond:
        return None
    inverse = torch.cholesky_inverse(factor)
    return CholeskyWhitening(covariance, factor, inverse) if total * inverse.trace() < _MARGIN / rcond else None


def principal_whitening(covariance: Tensor, rank: int, rcond: float, floor: float) -> PrincipalWhitening | None:
    """The ``rank`` leading principal directions, without those whose variance is below ``rcond`` times the largest.

    ``None`` if the largest variance is not above ``floor``: nothing varies.

    >>> covariance = torch.diag(torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64))
    >>> whitening = principal_whitening(covariance, rank=3, rcond=1e-12, floor=0.0)  # the third direction does not vary
    >>> whitening.variances.tolist(), whitening.congruence(covariance).diagonal().round(decimals=9).tolist()
    ([4.0, 1.0], [1.0, 1.0])
    """
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances.flip(0)[:rank], directions.flip(1)[:, :rank]
    if not float(variances[0]) > floor:
        return None
    kept = int((variances > rcond * variances[0]).sum())
    return PrincipalWhitening(directions[:, :kept], variances[:kept])
