"""KSS: differentiable penalties on the spectrum of residual transitions.

Source: RKSP section 3.3, Eq. 14-15. Everything from the states to the penalty goes through r x r moments of states projected on
r directions, so the price is O(N d r + r^3), and several processes only have to add up r x r numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError
from hf_rksp.spectral.moments import SecondMoments

#: Beyond it a square overflows float32, so the norm of the weights' gradient would. Nearly defective operators get there.
_LARGEST_GRADIENT = 1e19
#: Products with the scatter of the states in the range finder: one for the range, one power step.
_ROUNDS = 2
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class SolvedLayers:
    """Spectra and penalties of several layers, and how the penalties depend on the sums.

    Attributes:
        eigenvalues: shape ``(layers, r)``, complex; NaN where nothing could be computed.
        penalties: shape ``(layers,)``, 0 where nothing could be computed.
        gradients: at the sums, shape ``(layers, 1 + 2 r + 2 r^2)``, 0 where nothing could be computed.
        dropped: number of layers where a sum, an eigenvalue or a gradient was not finite.
    """

    eigenvalues: Tensor
    penalties: Tensor
    gradients: Tensor
    dropped: int


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
    """
    dtype, device = _working_dtype(states[0]), states[0].device

    def scatter(layer: int, basis: Tensor) -> Tensor:
        x = states[layer].to(dtype)
        return x.mT @ _weighted(x @ basis, weights)

    with torch.no_grad():
        basis = _random_start(len(states), states[0].shape[-1], rank, generator).to(device, dtype)
        total = None
        if centred:
            count = states[0].shape[0] if weights is None else weights.sum()
            means = [_weighted(x.to(dtype), weights).sum(0, keepdim=True) for x in states]
            total = reduce(torch.stack([torch.cat([m, m.new_full((1, 1), float(count))], 1) for m in means]))
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
    """What `leading_directions` finds from the states, from their moments: for batches that come one after the other.

    Returns:
        Shape ``(layers, d, r)``, float64.
    """
    found = []
    for layer, basis in zip(moments, _random_start(len(moments), moments[0].dim, rank, generator), strict=True):
        scatter, basis = layer.cxx if centred else _uncentred(layer)[0], basis.to(layer.cxx)
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
    """
    return _weighted(states.to(directions.dtype) @ directions, weights)


def projected_sums(p: Tensor, q: Tensor, weights: Tensor | None = None) -> Tensor:
    """What has to be added up over batches and processes: ``[N, sum p, sum q, P^T P, Q^T P]`` flattened, float64.

    Args:
        p, q: projected states before and after the block, shape ``(N, r)``, from `project`; gradient passes to both.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``.

    Returns:
        Shape ``(1 + 2 r + 2 r^2,)``.
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    count = p.new_full((1,), float(p.shape[0])) if weights is None else weights.sum().to(p).reshape(1)
    return torch.cat([count, p.sum(0), q.sum(0), (p.mT @ p).flatten(), (q.mT @ p).flatten()])


def projected_sums_of_moments(moments: SecondMoments, directions: Tensor) -> Tensor:
    """The same as `projected_sums` of all states that went into ``moments``.

    Args:
        moments: of the states before and after the block.
        directions: shape ``(d, r)``, float64.

    Returns:
        Shape ``(1 + 2 r + 2 r^2,)``.
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
    """
    rank = p.shape[-1]
    gradient = sums_gradient.to(p)
    at_means, at_squares = gradient[1 : 1 + 2 * rank].reshape(2, rank), gradient[1 + 2 * rank :].reshape(2, rank, rank)
    at_p = at_means[0] + p @ (at_squares[0] + at_squares[0].mT) + q @ at_squares[1]
    at_q = at_means[1] + p @ at_squares[1].mT
    return _weighted(at_p, weights), _weighted(at_q, weights)


def shaping_operator(sums: Tensor, config: KSSConfig) -> Tensor:
    """The whitened operator of rank r from `projected_sums`, with gradient.

    Whitening by the Cholesky factor differs from ZCA by a rotation, which eigenvalues do not see. The ridge of the default
    schedule is relative to the mean variance, in whitening and regression alike: an absolute one takes over when
    the stream shrinks, and its gradient then blows up.

    Args:
        sums: from `projected_sums`, added up over batches and processes, shape ``(..., 1 + 2 r + 2 r^2)``.
        config: ``rank``, ``ridge`` and ``centred``. Not centred, the operator also carries the mean of the stream, whose
            growth is what a network without normalisation diverges by.

    Returns:
        Shape ``(..., r, r)``, float64; NaN where the states do not vary at all.
    """
    rank, count, rest = config.rank, sums[..., :1, None], sums[..., 1:]
    squares, cross = rest[..., 2 * rank :].reshape(*rest.shape[:-1], 2, rank, rank).unbind(-3)
    cov_p, cov_qp = squares / count, cross / count
    if config.centred:
        mean_p, mean_q = rest[..., :rank, None] / count, rest[..., rank : 2 * rank, None] / count
        cov_p, cov_qp = cov_p - mean_p @ mean_p.mT, cov_qp - mean_q @ mean_p.mT
    eye = torch.eye(rank, dtype=sums.dtype, device=sums.device)
    variance = cov_p.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = config.ridge if config.schedule == "paper" else config.ridge * variance
    factor, failed = torch.linalg.cholesky_ex(cov_p + ridge * eye)
    factor = torch.where(failed[..., None, None] > 0, torch.nan, factor)
    left = torch.linalg.solve_triangular(factor, cov_qp, upper=False)
    whitened: Tensor = torch.linalg.solve_triangular(factor, left.mT, upper=False).mT
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


def excess_penalty(eigenvalues: Tensor, config: KSSConfig) -> Tensor:
    """One-sided hinge: the squared excess of the moduli over ``upper_threshold``, summed over the modes. Ours.

    Eq. 14 pushes on modes that are fine: its softplus is ln 2 at the threshold, and its near-unit term pulls modes that are
    contracted back up.

    Args:
        eigenvalues: shape ``(..., r)``, complex.

    Returns:
        Shape ``(...)``.
    """
    return torch.relu(eigenvalues.abs() - config.upper_threshold).square().sum(-1)


def solve_layers(sums: Tensor, config: KSSConfig) -> SolvedLayers:
    """Eigenvalues of each layer, the penalty of ``config.schedule``, and its gradient at the sums.

    Never raises on numbers: LAPACK is not given anything that is not finite (it may crash), and a gradient that is not
    finite or absurdly large, as at a defective operator, is left out and counted.

    Args:
        sums: from `projected_sums`, added up over processes, shape ``(layers, 1 + 2 r + 2 r^2)``, on the processor.
    """
    sums = sums.detach()
    eigenvalues = torch.full((len(sums), config.rank), torch.nan, dtype=torch.complex128)
    penalties, gradients = sums.new_zeros(len(sums)), torch.zeros_like(sums)
    every = torch.arange(len(sums))
    # All layers at once; if LAPACK fails at one of them, each for itself.
    for part in (every[None], every[:, None]):
        failed = False
        for layers in part:
            try:
                spectra, values, slopes, good = _differentiate(sums[layers], config)
            except RuntimeError:  # LAPACK did not converge, or the eigenvectors are singular
                failed = True
                continue
            eigenvalues[layers[good]], penalties[layers[good]] = spectra[good], values[good]
            gradients[layers[good]] = slopes[good]
        if not failed:
            break
    return SolvedLayers(eigenvalues, penalties, gradients, int(eigenvalues.isnan().any(-1).sum()))


def _differentiate(sums: Tensor, config: KSSConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and penalties of layers, the gradients of the penalties at their sums, and for which of them they hold."""
    penalty = shaping_penalty if config.schedule == "paper" else excess_penalty
    with torch.enable_grad():
        leaf = sums.clone().requires_grad_()
        operators = shaping_operator(leaf, config)
        good = (sums[:, 0] >= 2 * config.rank) & operators.isfinite().all(-1).all(-1)
        # A place holder for what LAPACK must not be given; its gradient ends here.
        eye = torch.eye(config.rank, dtype=sums.dtype)
        spectra = torch.linalg.eigvals(torch.where(good[:, None, None], operators, eye))
        values = penalty(spectra, config)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
    good = good & (gradients.abs().amax(-1) < _LARGEST_GRADIENT) & values.isfinite()
    return spectra.detach(), values.detach(), gradients, good


def _random_start(layers: int, dim: int, rank: int, generator: torch.Generator) -> Tensor:
    if not 1 <= rank <= dim:
        raise InputError(f"rank={rank}: it has to be from 1 to the width {dim}")
    start = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    return start.expand(layers, dim, rank)


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
