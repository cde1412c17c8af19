"""Largest eigenvalues and 2-norms by Lanczos iteration, several times cheaper than all eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Below this size all eigenvalues are as cheap.
_SMALL = 192
_STEPS, _CHECK_EVERY = 96, 4
#: The Ritz value is taken when its residual, and the estimate of its error, are below these shares of it.
_RESIDUAL, _ERROR = 1e-8, 1e-13


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value of a square float64 ``matrix``; accuracy as for `largest_eigenvalue`.

    >>> round(spectral_norm(torch.tensor([[0.0, 3.0], [1.0, 0.0]], dtype=torch.float64)), 9)
    3.0
    """
    top = _lanczos(lambda vector: matrix.T @ (matrix @ vector), matrix)
    return float(torch.linalg.svdvals(matrix)[0]) if top is None else top**0.5


def largest_eigenvalue(matrix: Tensor) -> float:
    """Largest eigenvalue of a symmetric positive semidefinite float64 ``matrix``, to about 1e-12 of itself.

    Lanczos iteration with full reorthogonalisation, from a fixed random vector. A Ritz value ``theta`` of residual r is within r
    of an eigenvalue, and within ``r^2 / gap`` of it, where the gap is that to the next one (Parlett 1998, sections 4.5 and
    11.7). The iteration ends at ``r <= 1e-8 theta`` and ``r^2 / gap <= 1e-13 theta``, with the second Ritz value for the next
    eigenvalue; of two eigenvalues that differ by less than 1e-8 of themselves, either may be returned. If 96 steps are not
    enough, all eigenvalues are computed.

    >>> round(largest_eigenvalue(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)), 9)
    3.0
    """
    top = _lanczos(lambda vector: matrix @ vector, matrix)
    return float(torch.linalg.eigvalsh(matrix)[-1]) if top is None else top


def _lanczos(product: Callable[[Tensor], Tensor], like: Tensor) -> float | None:
    size = len(like)
    if size <= _SMALL:
        return None
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    basis, tridiagonal = like.new_zeros(_STEPS + 1, size), like.new_zeros(_STEPS + 1, _STEPS + 1)
    basis[0] = vector / torch.linalg.vector_norm(vector)
    for step in range(_STEPS):
        vector = product(basis[step])
        tridiagonal[step, step] = vector @ basis[step]
        for _ in range(2):  # once leaves rounding
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        length = torch.linalg.vector_norm(vector)
        if not torch.isfinite(length):
            return None
        if (step + 1) % _CHECK_EVERY == 0:
            values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
            top, second = float(values[-1]), float(values[-2])
            residual = float(length * vectors[-1, -1].abs())
            if residual <= _RESIDUAL * top and residual**2 <= _ERROR * top * (top - second):
                return top
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = length
        basis[step + 1] = vector / length
    return None
