"""Eigendecomposition of a real matrix, kept in real arithmetic.

The eigenvectors of a real matrix come in conjugate pairs ``(a + ib, a - ib)``. With W holding ``sqrt(2) a, sqrt(2) b`` in
the places of such a pair, ``V = W U`` where U is unitary (2 x 2 blocks). So W has the singular values of V, and every
product and inverse with V can be done with W in real arithmetic, at a quarter of the price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.spectral.norm import spectral_norm


@dataclass(frozen=True)
class ModalBasis:
    """``A = V diag(eigenvalues) V^{-1}`` with unit-length columns of V.

    Attributes:
        eigenvalues: shape ``(k,)``, complex128; a pair stands side by side, positive imaginary part first.
        real_basis: W, shape ``(k, k)``, float64.
        real_inverse: the inverse of W, or ``None`` if W is singular to working precision (A is defective).
        first_of_pair: indices of the first member of each conjugate pair.
    """

    eigenvalues: Tensor
    real_basis: Tensor
    real_inverse: Tensor | None
    first_of_pair: Tensor

    @property
    def condition(self) -> float:
        """kappa(V) in the 2-norm; ``inf`` for a defective matrix."""
        if self.real_inverse is None:
            return math.inf
        return spectral_norm(self.real_basis) * spectral_norm(self.real_inverse)

    def single_precision(self) -> ModalBasis:
        """The same in float32 and complex64."""
        assert self.real_inverse is not None
        parts = self.eigenvalues.to(torch.complex64), self.real_basis.float(), self.real_inverse.float()
        return ModalBasis(*parts, self.first_of_pair)

    def left_quadratic(self, quadratic: Callable[[Tensor], Tensor]) -> Tensor:
        """``u_j G u_j^*`` for every LEFT eigenvector (row j of the inverse of V) and a real symmetric G. Shape (k,).

        Args:
            quadratic: gives ``u G u^T`` for every row u of a real matrix.
        """
        assert self.real_inverse is not None
        return self._mean_of_pairs(quadratic(self.real_inverse))

    def left_norms(self) -> Tensor:
        """Length of every left eigenvector with ``u_j^* v_j = 1``: the condition number of eigenvalue j. Shape (k,)."""
        assert self.real_inverse is not None
        return self._mean_of_pairs(self.real_inverse.square().sum(1)).sqrt()

    def _mean_of_pairs(self, rows: Tensor) -> Tensor:
        rows = rows.clone()
        first = self.first_of_pair
        rows[first] = rows[first + 1] = (rows[first] + rows[first + 1]) / 2
        return rows

    def to_modal(self, columns: Tensor) -> Tensor:
        """``V^{-1} columns`` for complex ``columns`` of shape ``(k, m)``."""
        assert self.real_inverse is not None
        return self._turn(real_product(self.real_inverse, columns), adjoint=True)

    def from_modal(self, columns: Tensor) -> Tensor:
        """``V columns``."""
        return real_product(self.real_basis, self._turn(columns, adjoint=False))

    def to_modal_adjoint(self, columns: Tensor) -> Tensor:
        """``V^* columns``."""
        return self._turn(real_product(self.real_basis.T, columns), adjoint=True)

    def from_modal_adjoint(self, columns: Tensor) -> Tensor:
        """``V^{-*} columns``."""
        assert self.real_inverse is not None
        return real_product(self.real_inverse.T, self._turn(columns, adjoint=False))

    def _turn(self, columns: Tensor, adjoint: bool) -> Tensor:
        """Apply U, or U^*, whose blocks are ``[[1, 1], [i, -i]] / sqrt(2)``, to the rows of the pairs."""
        columns = columns.clone()
        a, b = columns[self.first_of_pair], columns[self.first_of_pair + 1]
        if adjoint:
            top, bottom = a - 1j * b, a + 1j * b
        else:
            top, bottom = a + b, 1j * (a - b)
        columns[self.first_of_pair], columns[self.first_of_pair + 1] = top / math.sqrt(2), bottom / math.sqrt(2)
        return columns


def modal_basis(matrix: Tensor) -> ModalBasis:
    """Eigenvalues and eigenvectors of a real float64 ``matrix`` of shape ``(k, k)``.

    >>> modal = modal_basis(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))  # a quarter turn
    >>> modal.eigenvalues.tolist(), round(modal.condition, 9)
    ([1j, -1j], 1.0)
    """
    values, vectors = torch.linalg.eig(matrix)
    first = torch.nonzero(values.imag > 0).flatten()
    parts = torch.view_as_real(vectors.mT)  # LAPACK's eigenvectors lie one after the other
    rows = parts[..., 0].contiguous()
    rows[first] *= math.sqrt(2)
    rows[first + 1] = parts[..., 1][first] * math.sqrt(2)
    basis = rows.mT
    inverse, info = torch.linalg.inv_ex(basis)
    usable = int(info) == 0 and bool(torch.isfinite(inverse).all())
    return ModalBasis(values, basis, inverse if usable else None, first)


def real_product(matrix: Tensor, columns: Tensor) -> Tensor:
    """Real ``(k, k)`` times complex ``(k, m)`` as one real product.

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> real_product(turn, torch.tensor([[1 + 2j], [0]], dtype=torch.complex128)).flatten().tolist()
    [0j, (1+2j)]
    """
    k, m = columns.shape
    pairs = torch.view_as_real(columns).reshape(k, 2 * m)
    return torch.view_as_complex((matrix @ pairs).reshape(k, m, 2))
