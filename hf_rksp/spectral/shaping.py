"""KSS: a differentiable penalty on the spectrum of a residual transition.

Source: RKSP section 3.3, Eq. 14-15. Everything from the states to the penalty goes through r x r moments of states projected on
r directions, so the price is O(N d r + r^3), and several processes only have to add up r x r numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError


def leading_directions(
    x: Tensor,
    rank: int,
    generator: torch.Generator,
    centred: bool = True,
    reduce: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """Orthonormal basis of (nearly) the r leading principal directions of ``x``, by a randomised range finder.

    Halko, Martinsson and Tropp 2011, algorithm 4.4 with one power step. No gradient passes through it.

    Args:
        x: states, shape ``(N, d)``.
        rank: r, at most d.
        centred: take the mean out first.
        generator: of the random start; the same state on all processes gives all of them the same directions.
        reduce: sums a tensor over the processes.

    Returns:
        Shape ``(d, r)``, float64.
    """
    dim = x.shape[-1]
    if not 1 <= rank <= dim:
        raise InputError(f"rank={rank}: it has to be from 1 to the width {dim}")
    with torch.no_grad():
        rows = x.to(torch.float64)
        if centred:
            count = reduce(rows.new_tensor([float(rows.shape[0])]))
            rows = rows - reduce(rows.sum(0)) / count
        basis = torch.randn(dim, rank, generator=generator, dtype=torch.float64).to(rows.device)
        for _ in range(2):
            basis = torch.linalg.qr(reduce(rows.T @ (rows @ basis))).Q
    return basis


def projected_sums(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """What has to be added up over batches and processes: ``[N, sum p, sum q, P^T P, Q^T P]`` flattened, float64.

    Args:
        x, y: states before and after the block, shape ``(N, d)``; gradient passes to both.
        directions: shape ``(d, r)``, from `leading_directions`.

    Returns:
        Shape ``(1 + 2 r + 2 r^2,)``.
    """
    p, q = x.to(torch.float64) @ directions, y.to(torch.float64) @ directions
    count = p.new_tensor([float(p.shape[0])])
    return torch.cat([count, p.sum(0), q.sum(0), (p.T @ p).flatten(), (q.T @ p).flatten()])


def shaping_operator(sums: Tensor, config: KSSConfig) -> Tensor:
    """The whitened operator of rank r from `projected_sums`, with gradient.

    The ridge is relative to the mean variance, in whitening and regression alike: an absolute one takes over when the
    stream shrinks, and its gradient then blows up. Whitening by the Cholesky factor differs from ZCA by a rotation, which
    eigenvalues do not see.

    Args:
        sums: from `projected_sums`, added up over batches and processes.
        config: ``rank``, ``ridge`` and ``centred``. Not centred, the operator also carries the mean of the stream, whose
            growth is what a network without normalisation diverges by.

    Returns:
        Shape ``(r, r)``, float64.
    """
    rank, count, rest = config.rank, sums[0], sums[1:]
    squares, cross = rest[2 * rank :].reshape(2, rank, rank).unbind()
    cov_p, cov_qp = squares / count, cross / count
    if config.centred:
        mean_p, mean_q = rest[:rank] / count, rest[rank : 2 * rank] / count
        cov_p, cov_qp = cov_p - torch.outer(mean_p, mean_p), cov_qp - torch.outer(mean_q, mean_p)
    eye = torch.eye(rank, dtype=sums.dtype, device=sums.device)
    factor = torch.linalg.cholesky(cov_p + config.ridge * cov_p.diagonal().mean() * eye)
    left = torch.linalg.solve_triangular(factor, cov_qp, upper=False)
    whitened: Tensor = torch.linalg.solve_triangular(factor, left.T, upper=False).T
    return whitened


def shaping_penalty(eigenvalues: Tensor, config: KSSConfig) -> Tensor:
    """L_KSS of Eq. 14: an unstable term and a near-unit term, both of the moduli.

    Args:
        eigenvalues: shape ``(..., r)``, complex.

    Returns:
        Shape ``(...)``.
    """
    moduli, upper, lower = eigenvalues.abs(), config.upper_threshold, config.lower_threshold
    excess = torch.nn.functional.softplus(moduli - upper).square()
    unstable = (torch.sigmoid(config.temperature * (moduli - upper)) * excess).sum(-1)
    inside = torch.sigmoid(config.temperature * (moduli - lower)) * torch.sigmoid(config.temperature * (upper - moduli))
    return unstable + config.near_unit_weight * (inside.mean(-1) - config.near_unit_target).square()
