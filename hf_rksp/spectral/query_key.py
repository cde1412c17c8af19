"""How the product of queries and keys changes: the effective rank of the change, to first order.

Source: arXiv:2606.28116. Attention sees ``W_q^T W_k`` alone. If the weights change by ``dW_q`` and ``dW_k``, this product changes
by ``dW_q^T W_k + W_q^T dW_k`` to first order. The paper reports that the effective rank of the change falls long before a slow
failure.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        Shape ``(heads, 2 * head size, 2 * head size)``; NaN for a head whose weights are not finite, and 0 for one that did not
        move.

    >>> eye = torch.eye(1)[None]
    >>> change_gram(eye, eye, 0.0 * eye, 0.0 * eye)
    tensor([[[0., 0.],
             [0., 0.]]])
    """
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
