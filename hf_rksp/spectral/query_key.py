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
    """Singular values of ``dW_q^T W_k + W_q^T dW_k``, from factors of width twice the size of a head.

    The factors are ``L = [dW_q^T, W_q^T]`` and ``R = [W_k^T, dW_k^T]``. With the Cholesky factor ``C`` of ``L^T L`` the squares
    are the eigenvalues of ``C^T (R^T R) C``: nothing of the width d is decomposed.

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
    # A change is far smaller than its weight. In a Gram matrix it would be lost beside the weight, so both factors are balanced.
    sizes = [torch.linalg.matrix_norm(one) for one in (query_change, query, key_change, key)]
    moved, other = sizes[0] / sizes[1], sizes[2] / sizes[3]
    balance = (torch.where(moved > 0, moved, other) * torch.where(other > 0, other, moved)).sqrt()[:, None, None]
    left = torch.cat([query_change, query * balance], 1)
    right = torch.cat([key * balance, key_change], 1)
    gram = left @ left.mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # A singular matrix has a Cholesky factor if rounding makes no eigenvalue negative.
    diagonal += 4 * torch.finfo(gram.dtype).eps * diagonal.sum(-1, keepdim=True)
    lower, failed = torch.linalg.cholesky_ex(gram)
    inner = lower.mT @ (right @ right.mT) @ lower
    sound = (failed == 0) & inner.isfinite().flatten(1).all(1)
    inner = torch.where(sound[:, None, None], inner, 0.0)  # a decomposition raises for NaN
    squares = torch.linalg.eigvalsh(inner).clamp(min=0).flip(-1)[:, : query.shape[-1]]
    values = squares.sqrt() / balance[:, 0]
    return torch.where(sound[:, None], values, torch.where((sizes[0] + sizes[2] == 0)[:, None], 0.0, torch.nan))
