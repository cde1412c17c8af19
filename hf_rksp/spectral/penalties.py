"""KSS: penalties on the spectrum of residual transitions, and their gradients at the sums that they are made of.

Source: RKSP section 3.3, Eq. 14-15. Everything happens on r x r matrices on the host; nothing here waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_rksp.config import KSSConfig, PaperKSSConfig

#: Beyond it a square overflows float32, so the norm of the weights' gradient would. Nearly defective operators get there.
_LARGEST_GRADIENT = 1e19

#: Moduli, shape ``(..., r)``, and settings -> penalty, shape ``(...)``.
Penalty = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class SolvedLayers:
    """Spectra and penalties of several layers, and how the penalties depend on the sums.

    Attributes:
        eigenvalues: shape ``(layers, r)``, complex; NaN if nothing could be computed.
        penalties: shape ``(layers,)``; 0 if nothing could be computed.
        gradients: at the sums, shape ``(layers, 1 + 2 r + 2 r^2)``; 0 if nothing could be computed.
        good: shape ``(layers,)``, whether everything is finite.
    """

    eigenvalues: NDArray[np.complex128]
    penalties: NDArray[np.float64]
    gradients: Tensor
    good: NDArray[np.bool_]


def rank_of(sums: Tensor) -> int:
    """The rank r of `projected_sums` of shape ``(..., 1 + 2 r + 2 r^2)``.

    >>> rank_of(torch.zeros(1 + 2 * 3 + 2 * 3**2))
    3
    """
    return (math.isqrt(2 * sums.shape[-1] - 1) - 1) // 2


def shaping_operator(sums: Tensor, config: KSSConfig) -> Tensor:
    """The whitened operator of rank r from `projected_sums`, with gradient.

    Whitening by the Cholesky factor differs from ZCA by a rotation, which eigenvalues do not see. The ridge of the default
    schedule is relative to the mean variance, in whitening and regression alike: an absolute one takes over when
    the stream shrinks, and its gradient then blows up.

    Args:
        sums: from `projected_sums`, added up over batches and processes, shape ``(..., 1 + 2 r + 2 r^2)``.
        config: ``ridge`` and ``centred``. Without centring the operator includes the mean of the stream. Networks
            without normalisation diverge because this mean grows.

    Returns:
        Shape ``(..., r, r)``, float64; NaN if the states do not vary.

    >>> from hf_rksp.spectral.shaping import projected_sums
    >>> p = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> operator = shaping_operator(projected_sums(p, 3 * p), KSSConfig())  # q = 3 p, and a ridge of 1% of the variance
    >>> (1.01 * operator).diagonal().round(decimals=9).tolist()
    [3.0, 3.0]
    """
    rank, count, rest = rank_of(sums), sums[..., :1, None], sums[..., 1:]
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


def shaping_penalty(moduli: Tensor, config: PaperKSSConfig) -> Tensor:
    """L_KSS of Eq. 14: an unstable term and a near-unit term.

    Args:
        moduli: of the eigenvalues, shape ``(..., r)``.

    Returns:
        Shape ``(...)``.

    >>> at_threshold = shaping_penalty(torch.tensor([1.05]), KSSConfig("paper", near_unit_weight=0.0))
    >>> round(float(at_threshold), 4)  # sigmoid(0) softplus(0)^2 = ln(2)^2 / 2
    0.2402
    """
    upper, lower = config.upper_threshold, config.lower_threshold
    excess = torch.nn.functional.softplus(moduli - upper).square()
    unstable = (torch.sigmoid(config.temperature * (moduli - upper)) * excess).sum(-1)
    inside = torch.sigmoid(config.temperature * (moduli - lower)) * torch.sigmoid(config.temperature * (upper - moduli))
    return unstable + config.near_unit_weight * (inside.mean(-1) - config.near_unit_target).square()


def excess_penalty(moduli: Tensor, config: KSSConfig) -> Tensor:
    """One-sided hinge: the squared excess of the moduli over ``upper_threshold``, summed over the modes. Ours.

    Eq. 14 also acts on healthy modes: its softplus is ln 2 at the threshold, and its near-unit term pulls contracted modes
    up.

    Args:
        moduli: of the eigenvalues, shape ``(..., r)``.

    Returns:
        Shape ``(...)``.

    >>> round(float(excess_penalty(torch.tensor([1.25, 0.5]), KSSConfig())), 4)  # (1.25 - 1.05)^2
    0.04
    """
    return torch.relu(moduli - config.upper_threshold).square().sum(-1)


def solve_penalties(sums: Tensor, config: KSSConfig) -> SolvedLayers:
    """Eigenvalues of each layer, the penalty of ``config.schedule``, and its gradient at the sums.

    Never raises on numbers: LAPACK is not given anything that is not finite (it may crash), and a gradient that is not
    finite or absurdly large, as at a defective operator, is left out. Eigenvectors are computed only for layers with a mode that
    the penalty pushes on.

    Args:
        sums: from `projected_sums`, added up over processes, shape ``(layers, 1 + 2 r + 2 r^2)``, float64, on the host.
        config: thresholds and ridge.

    >>> from hf_rksp.spectral.shaping import projected_sums
    >>> p = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> solved = solve_penalties(projected_sums(p, 3 * p)[None], KSSConfig())  # two modes of modulus 3 / 1.01
    >>> bool(abs(solved.penalties[0] - 2 * (3 / 1.01 - 1.05) ** 2) < 1e-9)
    True
    """
    penalty: Penalty = shaping_penalty if isinstance(config, PaperKSSConfig) else excess_penalty
    with torch.enable_grad():
        leaf = sums.detach().requires_grad_()
        operators = shaping_operator(leaf, config)
        matrices = operators.detach().numpy().copy()
        good = (sums.detach().numpy()[:, 0] >= 2 * rank_of(sums)) & np.isfinite(matrices).all((1, 2))
        matrices[~good] = np.eye(matrices.shape[-1])  # a place holder for what LAPACK must not be given
        eigenvalues = _for_each(np.linalg.eigvals, matrices, good)
        moduli = torch.from_numpy(np.abs(eigenvalues)).requires_grad_()
        values = penalty(moduli, config)
        slopes = torch.autograd.grad(values.sum(), moduli)[0].numpy()
        pushed = good & (slopes != 0).any(-1)
        at_operators = np.zeros_like(matrices)
        for layer in np.flatnonzero(pushed):
            found = _slope_at_operator(matrices[layer], penalty, config)
            good[layer] = found is not None
            at_operators[layer] = 0 if found is None else found
        gradients = torch.zeros_like(leaf)
        if pushed.any():
            (gradients,) = torch.autograd.grad(operators, leaf, torch.from_numpy(at_operators))
    penalties = values.detach().numpy().copy()
    size = np.abs(gradients.numpy()).max(-1)
    # Where nothing is pushed on, the gradient is 0, also through an operator that is not finite.
    good &= np.isfinite(penalties) & (~pushed | (size < _LARGEST_GRADIENT))
    keep = good & pushed
    gradients = torch.where(torch.from_numpy(keep)[:, None], gradients, 0.0)
    eigenvalues[~good], penalties[~good] = np.nan, 0.0
    return SolvedLayers(eigenvalues, penalties, gradients, good)


def _for_each(
    function: Callable[[NDArray[Any]], NDArray[Any]], matrices: NDArray[Any], good: NDArray[np.bool_]
) -> NDArray[Any]:
    """``function`` of all matrices at once; if LAPACK fails at one of them, of each alone, and that one is no longer good."""
    try:
        return function(matrices).astype(np.complex128)
    except np.linalg.LinAlgError:
        found = np.full(matrices.shape[:2], np.nan, np.complex128)
        for layer, matrix in enumerate(matrices):
            try:
                found[layer] = function(matrix)
            except np.linalg.LinAlgError:
                good[layer] = False
        return found


def _slope_at_operator(matrix: NDArray[Any], penalty: Penalty, config: KSSConfig) -> NDArray[Any] | None:
    """Gradient of the penalty at one operator; ``None`` if LAPACK finds no basis of eigenvectors.

    With ``A = V diag(lambda) V^-1`` the eigenvalue moves by ``d lambda_k = (V^-1 dA V)_kk``, and its modulus by the real part of
    ``conj(lambda_k) / |lambda_k|`` times that.
    """
    try:
        eigenvalues, right = np.linalg.eig(matrix)
        left = np.linalg.inv(right)
    except np.linalg.LinAlgError:
        return None
    moduli = torch.from_numpy(np.abs(eigenvalues)).requires_grad_()
    slopes = torch.autograd.grad(penalty(moduli, config), moduli)[0].numpy()
    sizes = np.maximum(np.abs(eigenvalues), np.finfo(float).tiny)
    factors = slopes * eigenvalues.conj() / sizes
    found: NDArray[Any] = ((left.T * factors) @ right.T).real
    return found if np.isfinite(found).all() else None
