"""Moments -> whitened DMD operator, full or of rank r.

Source: RKSP section 3.2.2, Eq. 6-9. The paper whitens with ``Sigma^{-1/2}`` (ZCA). We whiten by Cholesky, or in the basis of
principal directions, which is the same operator seen in rotated coordinates: eigenvalues, singular values, norms, condition
numbers and residuals are equal, fewer products are needed, and rank r is just "the first r principal directions".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_rksp.config import SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, InputError, NonFiniteError, TooFewTokensError
from hf_rksp.spectral.moments import SecondMoments
from hf_rksp.spectral.whiten import CholeskyWhitening, PrincipalWhitening, cholesky_whitening, principal_whitening

#: A least-squares operator needs this many tokens per direction. With fewer, noise fills the spectrum. With one token per
#: direction the fit is exact for any data, and nonlinearity_ratio is 0.
TOKENS_PER_DIRECTION = 2


@dataclass(frozen=True)
class WhitenedOperator:
    """The least-squares operator of one transition in whitened coordinates, with the numbers it depends on.

    Properties that need eigenvalues or matrix products are computed on access.

    Attributes:
        matrix: A, shape ``(rank, rank)``, float64: ``Yt ~ A Xt`` (Eq. 8-9).
        rank: number of kept directions k.
        dim: width d of the states.
        samples: effective number of tokens.
        mode: ``"full"`` (all d directions were asked for) or ``"projected"`` (rank r).
        reason: why this mode and rank, in words.
        dropped: directions that were requested and lie below the relative cutoff.
        input_energy: share of the variance of x inside the kept directions.
        whitening, covariance_y: of x, and of y in its own coordinates, shape ``(d, d)``.
        variance_y: of y, also outside the span of x.
    """

    matrix: Tensor
    rank: int
    dim: int
    samples: float
    mode: Literal["full", "projected"]
    reason: str
    dropped: int
    input_energy: float
    whitening: CholeskyWhitening | PrincipalWhitening
    covariance_y: Tensor
    variance_y: float

    @property
    def condition(self) -> float:
        """Largest over smallest kept singular value of the centred states."""
        return math.sqrt(self.whitening.condition)

    @property
    def output_energy(self) -> float:
        """Share of the variance of y inside the kept directions."""
        return self.whitening.inside(self.covariance_y) / self.variance_y if self.variance_y > 0 else 1.0

    @property
    def trace_y(self) -> float:
        """``||Yt||_F^2`` divided by the weight of the sample; that of Xt is ``rank``."""
        return self.whitening.trace(self.covariance_y)

    def quadratic_y(self, rows: Tensor) -> Tensor:
        """``u Yt Yt^T u^T``, divided by the weight of the sample, for every row u of ``rows``. Shape ``(m,)``."""
        rows = self.whitening.unwhitened(rows)
        return ((rows @ self.covariance_y) * rows).sum(1)


def choose_rank(rank: int | Literal["auto", "full"], dim: int, samples: float) -> tuple[int, str]:
    """The number of directions for ``samples`` tokens of width ``dim``, and the reason in words.

    Raises:
        InputError: ``rank`` is neither "auto", "full" nor a whole number from 1 to ``dim``.
        TooFewTokensError: fewer than two tokens per direction.

    >>> choose_rank("auto", dim=4, samples=8)[0], choose_rank("auto", dim=4, samples=6)[0]  # two tokens per direction
    (4, 3)
    """
    enough = int(samples // TOKENS_PER_DIRECTION)
    if rank == "auto":
        if enough >= dim:
            return dim, f"full: {samples:g} tokens are at least {TOKENS_PER_DIRECTION} x {dim} dimensions"
        if enough < 1:
            raise TooFewTokensError(f"{samples:g} tokens: at least {TOKENS_PER_DIRECTION} are needed; pass more text")
        return enough, (
            f"rank {enough}: {samples:g} tokens are fewer than {TOKENS_PER_DIRECTION} x {dim} dimensions, so the states are "
            f"projected onto their {enough} leading directions; full mode needs {TOKENS_PER_DIRECTION * dim} tokens"
        )
    if rank == "full":
        if enough < dim:
            raise TooFewTokensError(
                f"rank='full' with {samples:g} tokens of width {dim}: full mode needs at least "
                f"{TOKENS_PER_DIRECTION * dim} tokens; pass more tokens, or rank={max(enough, 1)} or less"
            )
        return dim, "full: asked for"
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= dim:
        raise InputError(f"rank={rank!r}: pass 'auto', 'full' or a whole number from 1 to the width {dim}")
    if enough < rank:
        raise TooFewTokensError(
            f"rank={rank} with {samples:g} tokens: it needs at least {TOKENS_PER_DIRECTION * rank} tokens; pass more "
            f"tokens, or rank={max(enough, 1)} or less"
        )
    return rank, f"rank {rank}: asked for"


def in_sample_error_bias(samples_per_direction: float) -> float:
    """The fraction by which the error of a least-squares fit is too low on the samples that it was fitted to.

    A fit of ``r`` directions to ``n`` samples leaves ``1 - r / n`` of the variance of the noise, so that the root mean square
    error is too low by ``1 - sqrt(1 - r / n)``. The nonlinearity ratio and the residuals are such errors.

    Args:
        samples_per_direction: ``n / r``, at least 1.

    >>> in_sample_error_bias(4 / 3)  # 1 - sqrt(1 - 3/4)
    0.5
    """
    return 1 - math.sqrt(1 - 1 / samples_per_direction)


def whitened_dmd(
    moments: SecondMoments,
    rank: int | Literal["auto", "full"] = "auto",
    config: SpectralConfig | None = None,
    check_tokens: bool = True,
) -> WhitenedOperator:
    """Whitened DMD of one transition from its second moments (RKSP Eq. 6-9).

    Args:
        moments: of the states before (x) and after (y) the block.
        rank: ``"full"``; a whole number r, which projects x and y orthogonally onto the r leading principal
            directions of x; or ``"auto"``: full if there are enough tokens, else the largest rank that they allow.
        config: for ``covariance_rcond``, the cutoff relative to the largest eigenvalue of the covariance of x.
        check_tokens: refuse a whole-number ``rank`` above half the tokens. The jackknife switches it off, because its
            replicates keep the rank of the whole sample.

    Raises:
        TooFewTokensError, InputError: see `choose_rank`.
        DegenerateMomentsError: x does not vary at all.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # mean 0, covariance I / 2
    >>> moments = SecondMoments(2)
    >>> moments.update(x, x @ torch.diag(torch.tensor([2.0, 0.5])))  # y = A x with A = diag(2, 1/2)
    >>> whitened_dmd(moments).matrix.diagonal().round(decimals=9).tolist()
    [2.0, 0.5]
    """
    config = config or SpectralConfig()
    if check_tokens or isinstance(rank, str):
        asked, reason = choose_rank(rank, moments.width, moments.effective_count)
    else:
        asked, reason = rank, f"rank {rank}: asked for, tokens not checked"
    total_x = float(moments.cxx.trace()) / moments.weight
    total_y = (float(moments.cyy.trace()) + moments.outside_y) / moments.weight
    if not math.isfinite(total_x + total_y):
        raise NonFiniteError(
            "the squares of the states overflow float64: the states exceed 1e150; find the layer that blows up"
        )
    whitening = _whitening(moments, asked, config)
    return WhitenedOperator(
        matrix=whitening.congruence(moments.cyx / moments.weight),
        rank=whitening.rank,
        dim=moments.width,
        samples=moments.effective_count,
        mode="full" if asked == moments.width else "projected",
        reason=reason,
        dropped=asked - whitening.rank,
        input_energy=whitening.variance / total_x,
        whitening=whitening,
        covariance_y=moments.cyy / moments.weight,
        variance_y=total_y,
    )


def _whitening(moments: SecondMoments, rank: int, config: SpectralConfig) -> CholeskyWhitening | PrincipalWhitening:
    covariance, rcond = moments.cxx / moments.weight, config.covariance_rcond
    # Rounding leaves a variance of about eps^2 * mean^2 in a constant column; centring makes an exact 0 of most.
    floor = torch.finfo(torch.float64).eps ** 2 * float(moments.mean_x.square().max())
    whole = cholesky_whitening(covariance, rcond, floor) if rank == moments.dim else None
    whitening = whole or principal_whitening(covariance, rank, rcond, floor)
    if whitening is None:
        raise DegenerateMomentsError(
            f"all {moments.count} states x are equal, so they cannot be whitened: pass distinct text, and see that the "
            "model does not emit a constant"
        )
    return whitening
