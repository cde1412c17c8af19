"""How the product of queries and keys changes: the effective rank of the change, to first order.

Source: arXiv:2606.28116. Attention sees ``W_q^T W_k`` alone. If the weights change by ``dW_q`` and ``dW_k``, this product changes
by ``dW_q^T W_k + W_q^T dW_k`` to first order. The paper reports that the effective rank of the change falls long before a slow
failure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Step of the trapezoidal rule in the logarithm: an error of 2 pi exp(-2 pi^2 / step) = 9e-7 in the entropy.
_STEP = 1.25
#: What is cut off the integral on each side.
_CUT = 1e-6
#: Numbers of a matrix stack in memory at a time: 64 MiB in float64.
_AT_ONCE = 2**23


def effective_rank(singular_values: Tensor) -> Tensor:
    """``exp(-sum p log p)`` with ``p`` the squares of the singular values, divided by their sum.

    Args:
        singular_values: shape ``(..., r)``, at least 0.

    Returns:
        Shape ``(...)``, from 1 to r; NaN where all are zero.

    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
    tensor(2.)
    """
    squares = singular_values.square()
    share = squares / squares.sum(-1, keepdim=True)
    return torch.exp(-torch.special.xlogy(share, share).sum(-1))


def effective_rank_of_grams(grams: Tensor) -> Tensor:
    """`effective_rank` of the matrices that have these Gram matrices: the exponential of the entropy of ``rho = G / tr G``.

    On a CUDA device eigenvalues are computed one matrix after another, so the entropy is
    an integral over resolvents there, whose Cholesky factors are computed for all matrices at once: with ``t = exp(s)``

        x log x = integral over s of x (x - 1) t / ((1 + t) (x + t)).

    The integrand is analytic in a strip of half-width pi, so the trapezoidal rule converges exponentially. In float64 the result
    is that of the eigenvalues to a relative error of 1e-5. The host does not wait for a CUDA device.

    Args:
        grams: symmetric and not negative, shape ``(..., n, n)``.

    Returns:
        Shape ``(...)``, from 1 to n, in float64; NaN for a matrix that is zero or not finite. On a CUDA device also NaN for one
        with an eigenvalue below ``-1e-8 tr G``, which rounding to float32 can make.

    >>> effective_rank_of_grams(torch.diag(torch.tensor([4.0, 4.0, 0.0])))
    tensor(2., dtype=torch.float64)
    """
    if not grams.is_cuda:
        return effective_rank(singular_values(grams)).double()
    flat = grams.flatten(0, -3)
    at_once = max(_AT_ONCE // flat.shape[-1] ** 2, 1)
    return torch.cat([_by_resolvents(some) for some in flat.split(at_once)]).reshape(grams.shape[:-2])


def _by_resolvents(grams: Tensor) -> Tensor:
    """`effective_rank_of_grams` by the integral, shape ``(m)`` for ``(m, n, n)``."""
    size = grams.shape[-1]
    grams = grams.double()
    trace = grams.diagonal(dim1=-2, dim2=-1).sum(-1)
    sound = grams.isfinite().flatten(-2).all(-1) & (trace > 0)
    density = torch.where(sound[:, None, None], grams / trace[:, None, None], 0.0)
    eye = torch.eye(size, dtype=grams.dtype, device=grams.device)
    entropy = torch.zeros_like(trace)
    # The integrand falls as exp(s) on the left, for each eigenvalue, and as exp(-s) on the right.
    left, right = math.log(_CUT / size), -math.log(_CUT)
    for s in torch.arange(left, right, _STEP).tolist():
        t = math.exp(s)
        lower, failed = torch.linalg.cholesky_ex(density + t * eye)
        sound &= failed == 0
        inverse = torch.linalg.solve_triangular(lower, eye.expand_as(density), upper=False)
        # With the trace of x (x - 1) / (x + t) = x - 1 - t + t (1 + t) / (x + t), over all eigenvalues x.
        resolvent = inverse.square().sum((-2, -1))
        entropy -= _STEP * t / (1 + t) * (1 - size * (1 + t) + t * (1 + t) * resolvent)
    return torch.where(sound, entropy.exp(), torch.nan)


def change_of_product(query: Tensor, key: Tensor, query_change: Tensor, key_change: Tensor) -> Tensor:
    """Singular values of ``dW_q^T W_k + W_q^T dW_k``.

    Args:
        query, key: weights of the heads, shape ``(heads, head size, d)``.
        query_change, key_change: of that shape.

    Returns:
        Shape ``(heads, min(2 * head size, d))``, in descending order: the rank is at most twice the size of a head. Their squares
        are exact to some units of rounding of the sum of the squares. NaN for a head whose weights are not finite.

    >>> eye = torch.eye(2)[None]
    >>> change_of_product(eye, eye, 0.5 * eye, 0.0 * eye)
    tensor([[0.5000, 0.5000]])
    """
    return singular_values(change_gram(query, key, query_change, key_change))[:, : query.shape[-1]]


def change_gram(query: Tensor, key: Tensor, query_change: Tensor, key_change: Tensor) -> Tensor:
    """A symmetric matrix whose eigenvalues are the squares of the singular values of `change_of_product`, and zeros.

    The factors are ``L = [dW_q^T, W_q^T]`` and ``R = [W_k^T, dW_k^T]``, and ``C`` the Cholesky factor of ``L^T L``: the matrix is
    ``C^T (R^T R) C``, and nothing of the width d is decomposed. The host does not wait for the device.

    Returns:
        Shape ``(heads, 2 * head size, 2 * head size)``, on a CUDA device in float64; NaN for a head whose weights are not finite,
        and 0 for one that did not move.

    >>> eye = torch.eye(1)[None]
    >>> change_gram(eye, eye, 0.0 * eye, 0.0 * eye)
    tensor([[[0., 0.],
             [0., 0.]]])
    """
    if query.is_cuda:  # `effective_rank_of_grams` needs eigenvalues that rounding does not make negative there
        query, key, query_change, key_change = (one.double() for one in (query, key, query_change, key_change))
    # A change is far smaller than its weight. In a Gram matrix it would be lost beside the weight, so both factors are balanced.
    sizes = [torch.linalg.matrix_norm(one)[:, None, None] for one in (query_change, query, key_change, key)]
    ratios = torch.stack([sizes[0] / sizes[1], sizes[2] / sizes[3]])
    # The geometric mean of those that are known: nothing is if a weight was zero, or did not move.
    known = torch.where((ratios > 0) & ratios.isfinite(), ratios, torch.nan)
    balance = known.log().nanmean(0).exp().nan_to_num(1.0)
    left = torch.cat([query_change, query * balance], 1)
    right = torch.cat([key * balance, key_change], 1)
    gram = left @ left.mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # A singular matrix has a Cholesky factor if rounding makes no eigenvalue negative.
    diagonal += 4 * torch.finfo(gram.dtype).eps * diagonal.sum(-1, keepdim=True)
    lower, failed = torch.linalg.cholesky_ex(gram)
    found = lower.mT @ (right @ right.mT) @ lower / balance.square()
    found = torch.where((failed == 0)[:, None, None], found, torch.nan)
    return torch.where(sizes[0] + sizes[2] == 0, 0.0, found)


def singular_values(grams: Tensor) -> Tensor:
    """Square roots of the eigenvalues of symmetric matrices, shape ``(..., n)`` for ``(..., n, n)``, in descending order.

    One decomposition serves all matrices, so the host waits for the device once. NaN for a matrix that is not finite.

    >>> singular_values(torch.diag(torch.tensor([4.0, 9.0])))
    tensor([3., 2.])
    """
    sound = grams.isfinite().flatten(-2).all(-1)
    values = torch.linalg.eigvalsh(torch.where(sound[..., None, None], grams, 0.0))  # it raises for NaN
    return torch.where(sound[..., None], values.clamp(min=0).sqrt().flip(-1), torch.nan)
