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

    Args:
        query, key: weights of the heads, shape ``(heads, head size, d)``.
        query_change, key_change: of that shape.

    Returns:
        Shape ``(heads, min(2 * head size, d))``, in descending order. The rank is at most twice the size of a head.

    >>> eye = torch.eye(2)[None]
    >>> change_of_product(eye, eye, 0.5 * eye, 0.0 * eye)
    tensor([[0.5000, 0.5000]])
    """
    left = torch.cat([query_change, query], 1).mT
    right = torch.cat([key, key_change], 1).mT
    inner = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right, mode="r").R.mT
    values: Tensor = torch.linalg.svdvals(inner)
    return values
