"""The largest eigenvalue of a symmetric operator that is known by its products with vectors alone.

Source: Lanczos with full reorthogonalisation and thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000). Power
iteration converges to the eigenvalue of the largest modulus; in a Hessian that one may be negative, and only a positive one
limits the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.errors import InputError, NonFiniteError

#: Takes and returns a vector of shape ``(n,)``.
Product = Callable[[Tensor], Tensor]
#: Takes sums over the entries of vectors, shape ``(k,)``, that this process has, and returns those over all processes.
Total = Callable[[Tensor], Tensor]

#: A residual within this many units of rounding of the operator's norm is zero.
_ROUNDING = 16
#: Entries of a vector that are worked on at once: a product of two whole vectors would be one more in memory.
_PIECE = 2**22
_START = "pass a finite floating vector of shape (n,) that is not zero"


@dataclass(frozen=True)
class LargestEigenvalue:
    """The algebraically largest eigenvalue that Lanczos has reached.

    Attributes:
        value: the largest Ritz value, with its sign. It is a lower bound of the largest eigenvalue, up to rounding.
        residual: ``||A v - value v||`` for the unit vector ``v`` below; some eigenvalue is at most that far from ``value``.
        products: products with the operator.
        converged: whether ``residual <= tolerance * |value|``.
        vector: shape ``(n,)``, the unit Ritz vector; a good ``start`` for the next call if the operator changes slowly.
    """

    value: float
    residual: float
    products: int
    converged: bool
    vector: Tensor


def largest_eigenvalue(
    product: Product,
    start: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 100,
    min_products: int = 1,
    basis: int = 16,
    total: Total | None = None,
    overwrite_start: bool = False,
) -> LargestEigenvalue:
    """Lanczos for the algebraically largest eigenvalue of a symmetric operator. The host waits for the device once per product.

    Args:
        product: ``v -> A v``. ``A`` has to be symmetric; this is not checked. What it returns is overwritten, unless it is ``v``.
        start: shape ``(n,)``. Its dtype and device are those of the basis; sums are in float64. Take a random vector: an
            eigenvector to which ``start`` is orthogonal is missed.
        tolerance: relative residual at which the search ends.
        max_products: products at which it ends without convergence.
        min_products: products before which a small residual does not end it: it may be that of another eigenvalue, if ``start`` is
            near an eigenvector.
        basis: vectors of length ``n`` in memory, at least 4. A restart keeps a quarter of them.
        total: see `Total`; ``None`` if vectors lie here as a whole.
        overwrite_start: use the memory of ``start`` for the basis.

    Raises:
        InputError: an argument is out of range, or ``start`` is zero.
        NonFiniteError: a product is not finite.

    >>> matrix = torch.diag(torch.tensor([-9.0, 1.0, 3.0], dtype=torch.float64))
    >>> largest = largest_eigenvalue(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64))
    >>> round(largest.value, 9), largest.converged, largest.products
    (3.0, True, 3)
    """
    total = total or _as_it_is
    _check(start, tolerance, max_products, basis)
    rows = [_unit(start, total, overwrite_start)]
    projected = torch.zeros(0, 0, dtype=torch.float64)
    for products in range(1, max_products + 1):
        w = _multiplied(product, rows[-1])
        column = _orthogonalise(w, rows, total)
        *coefficients, beta = torch.cat([column, total(square(w)[None]).sqrt()]).tolist()
        if not all(map(math.isfinite, [*coefficients, beta])):
            raise NonFiniteError(f"product: number {products} is not finite; check the loss and the weights")
        projected = _bordered(projected, torch.tensor(coefficients, dtype=torch.float64))
        values, vectors = torch.linalg.eigh(projected)
        value, residual = float(values[-1]), beta * abs(float(vectors[-1, -1]))
        rounding = _ROUNDING * torch.finfo(start.dtype).eps * float(values.abs().max())
        converged = residual <= max(tolerance * abs(value), rounding)
        if (converged and products >= min_products) or beta <= rounding or products == max_products:
            _combine(rows, vectors[:, -1:])
            return LargestEigenvalue(value, residual, products, converged, rows[0])
        if len(rows) == basis:
            kept = basis // 4
            _combine(rows, vectors[:, -kept:])
            rows = rows[:kept]
            projected = torch.diag(values[-kept:])
        rows.append(w.div_(beta))
    raise AssertionError("unreachable: max_products is at least 1")


def power_iteration(
    product: Product,
    start: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 5,
    total: Total | None = None,
    overwrite_start: bool = False,
) -> LargestEigenvalue:
    """Power iteration, as published for the preconditioned Hessian (arXiv:2606.16768).

    It converges to the eigenvalue of the largest modulus: ``value`` may be negative, and is then not the largest one. The
    arguments and errors are those of `largest_eigenvalue`.

    >>> matrix = torch.diag(torch.tensor([-9.0, 1.0, 3.0], dtype=torch.float64))
    >>> round(power_iteration(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), max_products=50).value, 3)
    -9.0
    """
    total = total or _as_it_is
    _check(start, tolerance, max_products, basis=4)
    vector = _unit(start, total, overwrite_start)
    for products in range(1, max_products + 1):
        w = _multiplied(product, vector)
        value, squared = total(torch.stack([dot(vector, w), square(w)])).tolist()
        if not (math.isfinite(value) and math.isfinite(squared)):
            raise NonFiniteError(f"product: number {products} is not finite; check the loss and the weights")
        residual = math.sqrt(max(squared - value**2, 0.0))
        converged = residual <= tolerance * abs(value)
        if converged or products == max_products or not squared:
            return LargestEigenvalue(value, residual, products, converged, vector)
        vector = w.div_(math.sqrt(squared))
    raise AssertionError("unreachable: max_products is at least 1")


def _check(start: Tensor, tolerance: float, max_products: int, basis: int) -> None:
    if start.ndim != 1 or not start.is_floating_point():
        raise InputError(f"start of shape {tuple(start.shape)} and {start.dtype}: {_START}")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance={tolerance!r}: it has to be a finite number above zero")
    if max_products < 1:
        raise InputError(f"max_products={max_products!r}: pass a whole number of at least 1")
    if basis < 4:
        raise InputError(f"basis={basis!r}: pass a whole number of at least 4")


def _as_it_is(sums: Tensor) -> Tensor:
    return sums


def dot(a: Tensor, b: Tensor) -> Tensor:
    """``sum(a * b)`` in float64, a piece at a time, without a vector of the products.

    >>> dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor(11., dtype=torch.float64)
    """
    pieces = zip(a.split(_PIECE), b.split(_PIECE), strict=True)
    return torch.stack([(x * y).sum(dtype=torch.float64) for x, y in pieces]).sum()


def square(a: Tensor) -> Tensor:
    """``sum(a * a)``; each square is made in float64, because float32 holds none of numbers above 1e19 or below 1e-19.

    >>> square(torch.tensor([1e30, 0.0]))
    tensor(1.0000e+60, dtype=torch.float64)
    """
    return torch.stack([piece.double().square().sum() for piece in a.split(_PIECE)]).sum()


def _unit(start: Tensor, total: Total, overwrite: bool) -> Tensor:
    start = start.detach()
    norm = math.sqrt(float(total(square(start)[None])))
    if not (norm and math.isfinite(norm)):
        raise InputError(f"start of norm {norm}: {_START}")
    return start.div_(norm) if overwrite else start / norm


def _multiplied(product: Product, vector: Tensor) -> Tensor:
    """``product(vector)``, which may be overwritten."""
    w = product(vector).detach()
    if w.shape != vector.shape:
        raise InputError(f"product: it returned shape {tuple(w.shape)} for a vector of {tuple(vector.shape)}")
    same = w.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    return w.to(vector.dtype, copy=same)


def _orthogonalise(w: Tensor, rows: Sequence[Tensor], total: Total) -> Tensor:
    """Subtract from ``w``, in place, its projection on ``rows``, and return the coefficients, shape ``(len(rows),)``.

    The subtraction is done twice, which is enough for full orthogonality (Kahan, in Parlett, section 6.9).
    """
    coefficients = torch.zeros(len(rows), dtype=torch.float64, device=w.device)
    for _ in range(2):
        parts = total(torch.stack([dot(row, w) for row in rows]))
        for row, part in zip(rows, parts.to(w.dtype), strict=True):
            w.addcmul_(row, part, value=-1)
        coefficients += parts
    return coefficients


def _bordered(matrix: Tensor, column: Tensor) -> Tensor:
    """The symmetric matrix ``(k, k)`` with a last row and column, shape ``(k + 1,)``."""
    size = len(column)
    larger = torch.zeros(size, size, dtype=torch.float64)
    larger[:-1, :-1] = matrix
    larger[:, -1] = larger[-1, :] = column
    return larger


def _combine(rows: Sequence[Tensor], coefficients: Tensor) -> None:
    """Overwrite the first rows with combinations of all rows, one per column of ``coefficients``; a piece at a time."""
    new = coefficients.T.to(rows[0])
    for pieces in zip(*(row.split(_PIECE) for row in rows), strict=True):
        for piece, combined in zip(pieces, new @ torch.stack(pieces), strict=False):
            piece.copy_(combined)
