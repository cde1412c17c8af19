"""KSS: from states to the sums that the penalties on the spectrum of residual transitions are made of, and back.

Source: RKSP section 3.3, Eq. 14-15. Everything from the states to the penalty goes through r x r moments of states projected on
r directions, so the price is O(N d r + r^3), and several processes only have to add up r x r numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_rksp.errors import InputError
from hf_rksp.spectral.moments import SecondMoments

#: Products with the scatter of the states in the range finder: one for the range, one power step.
_ROUNDS = 2
_TINY = torch.finfo(torch.float32).tiny


def leading_directions(
    states: Sequence[Tensor],
    rank: int,
    generator: torch.Generator,
    centred: bool = True,
    weights: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """Orthonormal bases of (nearly) the r leading principal directions, by a randomised range finder.

    Halko, Martinsson and Tropp 2011, algorithm 4.4 with one power step. No gradient passes through it.

    Args:
        states: of each layer, shape ``(N, d)``.
        rank: r, at most d.
        generator: of the random start; the same state on all processes gives all of them the same directions.
        centred: take the means out first.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``.
        reduce: sums a tensor over the processes.

    Returns:
        Shape ``(layers, d, r)``, in the dtype of the states but float32 at least.

    >>> states = torch.tensor([[0.0, 2.0], [0.0, -2.0]])  # they vary along the second axis alone
    >>> leading_directions([states], 1, torch.Generator().manual_seed(0)).abs().flatten().round(decimals=6).tolist()
    [0.0, 1.0]
    """
    dtype, device = _working_dtype(states[0]), states[0].device

    def scatter(layer: int, basis: Tensor) -> Tensor:
        x = states[layer].to(dtype)
        return x.mT @ _weighted(x @ basis, weights)

    with torch.no_grad():
        basis = (
            _random_start(states[0].shape[-1], rank, generator)
            .to(device, dtype, non_blocking=True)
            .expand(len(states), -1, -1)
        )
        total = None
        if centred:
            means = torch.stack([_weighted(x.to(dtype), weights).sum(0, keepdim=True) for x in states])
            number = states[0].shape[0] if weights is None else weights.sum().to(means)
            total = reduce(torch.cat([means, torch.ones_like(means[..., :1]) * number], -1))
        for _ in range(_ROUNDS):
            product = reduce(torch.stack([scatter(layer, b) for layer, b in enumerate(basis)]))
            if total is not None:
                sums, count = total[..., :-1], total[..., -1:]
                product = product - sums.mT @ (sums @ basis) / count
            basis = _orthonormal(product)
    return basis


def leading_directions_of_moments(
    moments: Sequence[SecondMoments], rank: int, generator: torch.Generator, centred: bool = True
) -> Tensor:
    """The same as `leading_directions`, computed from moments: for batches that come one after the other.

    Returns:
        Shape ``(layers, d, r)``, float64.

    >>> moments = SecondMoments(2)
    >>> moments.update(torch.tensor([[0.0, 2.0], [0.0, -2.0]]), torch.zeros(2, 2))
    >>> leading_directions_of_moments([moments], 1, torch.Generator().manual_seed(0)).abs().flatten().round(decimals=6).tolist()
    [0.0, 1.0]
    """
    found = []
    start = _random_start(moments[0].dim, rank, generator)
    for layer in moments:
        scatter, basis = layer.cxx if centred else _uncentred(layer)[0], start.to(layer.cxx)
        for _ in range(_ROUNDS):
            basis = _orthonormal(scatter @ basis)
        found.append(basis)
    return torch.stack(found)


def project(states: Tensor, directions: Tensor, weights: Tensor | None = None) -> Tensor:
    """States on r directions, with gradient; padding becomes zero.

    Args:
        states: shape ``(N, d)``.
        directions: shape ``(d, r)``, from `leading_directions`.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``.

    Returns:
        Shape ``(N, r)``, in the dtype of the directions.

    >>> states, axis = torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([[0.0], [1.0]])
    >>> project(states, axis, weights=torch.tensor([[1.0], [0.0]])).tolist()  # the second row is padding
    [[4.0], [0.0]]
    """
    return _weighted(states.to(directions.dtype) @ directions, weights)


def projected_sums(p: Tensor, q: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sums over batches and processes: ``[N, sum p, sum q, P^T P, Q^T P]``, flattened, float64.

    Args:
        p, q: projected states before and after the block, shape ``(N, r)``, from `project`; gradient passes to both.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``.

    Returns:
        Shape ``(1 + 2 r + 2 r^2,)``.

    >>> p, q = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    >>> projected_sums(p, q).tolist()  # N, sum p, sum q, sum p^2, sum q p
    [2.0, 4.0, 6.0, 10.0, 14.0]
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    count = p.new_full((1,), float(p.shape[0])) if weights is None else weights.sum().to(p).reshape(1)
    return torch.cat([count, p.sum(0), q.sum(0), (p.mT @ p).flatten(), (q.mT @ p).flatten()])


def projected_sums_of_moments(moments: SecondMoments, directions: Tensor) -> Tensor:
    """The `projected_sums` of all states that were added to ``moments``.

    Args:
        moments: of the states before and after the block.
        directions: shape ``(d, r)``, float64.

    Returns:
        Shape ``(1 + 2 r + 2 r^2,)``.

    >>> moments = SecondMoments(1)
    >>> moments.update(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]]))
    >>> projected_sums_of_moments(moments, torch.ones(1, 1, dtype=torch.float64)).tolist()
    [2.0, 4.0, 6.0, 10.0, 14.0]
    """
    squares = [(directions.mT @ matrix @ directions).flatten() for matrix in _uncentred(moments)]
    means = [moments.weight * (mean @ directions) for mean in (moments.mean_x, moments.mean_y)]
    return torch.cat([means[0].new_full((1,), moments.weight), *means, *squares])


def state_gradients(
    p: Tensor, q: Tensor, sums_gradient: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Chain rule from the gradient at `projected_sums` to the gradients at the projected states.

    Args:
        p, q: projected states before and after the block, shape ``(N, r)``.
        sums_gradient: shape ``(1 + 2 r + 2 r^2,)``.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``.

    Returns:
        Gradients at p and at q, each ``(N, r)``, in the dtype of ``p``.

    >>> p, q = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    >>> at_p, at_q = state_gradients(p, q, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))  # of sum q p: q at p, and p at q
    >>> at_p.flatten().tolist(), at_q.flatten().tolist()
    ([2.0, 4.0], [1.0, 3.0])
    """
    rank = p.shape[-1]
    gradient = sums_gradient.to(p)
    at_means, at_squares = gradient[1 : 1 + 2 * rank].reshape(2, rank), gradient[1 + 2 * rank :].reshape(2, rank, rank)
    at_p = at_means[0] + p @ (at_squares[0] + at_squares[0].mT) + q @ at_squares[1]
    at_q = at_means[1] + p @ at_squares[1].mT
    return _weighted(at_p, weights), _weighted(at_q, weights)


def _random_start(dim: int, rank: int, generator: torch.Generator) -> Tensor:
    if not 1 <= rank <= dim:
        raise InputError(f"rank={rank}: it has to be from 1 to the width {dim}")
    return torch.randn(dim, rank, generator=generator, dtype=torch.float64)


def _orthonormal(product: Tensor) -> Tensor:
    """A common scale changes no direction, and keeps the squares of large states finite."""
    basis: Tensor = torch.linalg.qr(product / product.abs().amax((-2, -1), keepdim=True).clamp_min(_TINY)).Q
    return basis


def _uncentred(moments: SecondMoments) -> tuple[Tensor, Tensor]:
    """``X^T X`` and ``Y^T X`` with the means left in, each ``(d, d)``."""
    x, y, weight = moments.mean_x, moments.mean_y, moments.weight
    return torch.addr(moments.cxx, x, x, alpha=weight), torch.addr(moments.cyx, y, x, alpha=weight)


def _weighted(rows: Tensor, weights: Tensor | None) -> Tensor:
    return rows if weights is None else rows * weights.to(rows.dtype)


def _working_dtype(x: Tensor) -> torch.dtype:
    """Half precision is too coarse for products of many tokens; float32 and float64 stay."""
    return torch.promote_types(x.dtype, torch.float32)
