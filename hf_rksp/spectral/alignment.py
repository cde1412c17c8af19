"""Spectral Alignment: how the inputs of a linear map lie relative to its principal singular direction.

Source: Qiu et al., "Spectral Alignment as Predictor of Loss Explosion in Neural Network Training", arXiv:2510.04202. For a map
``y = W x`` with the top singular triplet ``(sigma, u, v)``, the alignment of one input is ``cos(x, v)``. In a healthy network its
signs are mixed. The paper reports that nearly all signs are equal before a loss explodes, and that the spectral norm then grows
in every step (Theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.errors import InputError, NonFiniteError

#: ``v -> W v`` and ``u -> W^T u``.
Products = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

#: Bins of the histogram of the alignment, from -1 to 1.
BINS = 20
#: What `alignment_sums` adds up: tokens, tokens with a positive alignment, sum of its moduli, and the bins.
SUMS = 3 + BINS

#: A length whose square has all digits of float32.
_SHORT = 1e-15


@dataclass(frozen=True)
class Principal:
    """The top singular triplet of ``W`` as far as power iteration has come.

    Attributes:
        sigma: ``||W^T u||``, a lower bound of the spectral norm. A tensor without dimensions, on the device of ``W``: to read it
            would wait for the device.
        u: shape ``(out,)``, of length 1.
        v: shape ``(in,)``, of length 1.
        residual: ``||W v - sigma u|| / sigma`` for the vector ``v`` that the step began with; small if ``v`` was a singular vector
            already.
        growth: ``u0^T (W - W0) v0``: the change of the spectral norm since the last reading, to first order, along the vectors of
            that reading (Theorem 1). NaN at the first reading.
    """

    sigma: Tensor
    u: Tensor
    v: Tensor
    residual: Tensor
    growth: Tensor


def principal(weight: Tensor | Products, start: Principal | Tensor, products: int = 1) -> Principal:
    """Follow the top singular triplet of a matrix by power iteration.

    Two consecutive ``v`` have an inner product of at least 0, because ``v1 = W^T W v0 / ||..||`` and ``W^T W`` is positive
    semidefinite: so the sign, which is a convention, stays from reading to reading.

    Args:
        weight: ``W``, shape ``(out, in)``, or its two products.
        start: the triplet of the last reading, or a vector of shape ``(in,)``.
        products: steps of power iteration; each takes one product with ``W`` and one with its transpose.

    Raises:
        InputError: ``products`` is below 1.

    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> principal(weight, torch.tensor([1.0, 0.2]), products=8).sigma
    tensor(3.)
    """
    if products < 1:
        raise InputError(f"products={products}: pass a whole number of at least 1")
    forth, back = (weight.mv, weight.mT.mv) if isinstance(weight, Tensor) else weight
    old = start if isinstance(start, Principal) else None
    v = old.v if old is not None else _unit(start)  # type: ignore[arg-type]
    image = forth(v)
    growth = torch.dot(old.u, image) - old.sigma if old is not None else torch.full_like(image[0], math.nan)
    residual = torch.full_like(growth, math.nan)
    for step in range(products):
        if step:
            image = forth(v)
        u = _unit(image)
        # W v minus its part along the vector u that v had: 0 if (u, v) is a singular pair.
        folded = back(u)
        sigma = folded.norm()
        residual = (folded - torch.dot(folded, v) * v).norm() / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)
        v = _unit(folded)
    return Principal(sigma, u, v, residual, growth)


def first_principal(weight: Tensor | Products, start: Tensor, tolerance: float = 1e-2, most: int = 60) -> Principal:
    """The top singular triplet from a random vector: power iteration until the residual is below ``tolerance``.

    Args:
        weight: see `principal`.
        start: shape ``(in,)``, random.
        tolerance: of `Principal.residual`.
        most: steps of power iteration at most. If two singular values are nearly equal, any vector between theirs is as good.

    Raises:
        NonFiniteError: the matrix is not finite.

    >>> first_principal(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 1.0])).sigma
    tensor(3.)
    """
    found = principal(weight, start, 8)
    steps = 8
    while not float(found.residual) <= tolerance and steps < most:
        if not math.isfinite(float(found.sigma)):
            raise NonFiniteError("weight: it has entries that are not finite")
        found = principal(weight, found, 8)
        steps += 8
    return Principal(found.sigma, found.u, found.v, found.residual, torch.full_like(found.growth, math.nan))


def alignments(x: Tensor, v: Tensor) -> Tensor:
    """``cos(x, v)`` of each input and each direction; NaN where it cannot be told.

    That is where an input is zero or not finite, where its squares leave the range of float32 (lengths below 1e-15 or above 1e19),
    and where its product with a direction leaves the range of float16.

    Args:
        x: inputs of one or several maps, shape ``(..., in)``.
        v: shape ``(maps, in)``, rows of length 1.

    Returns:
        Shape ``(maps, ...)``, on the device of ``x``; float64 if ``x`` is, else float32.

    >>> alignments(torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[1., 0.]])
    """
    states = x.detach()
    dtype = torch.promote_types(states.dtype, torch.float32)
    along = (states @ v.to(states.dtype).mT).to(dtype)
    lengths: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=dtype)
    known = along.isfinite() & lengths.isfinite() & (lengths > (_SHORT if dtype == torch.float32 else 0))
    cosine: Tensor = torch.where(known, (along / lengths).clamp(-1, 1), math.nan)
    return cosine.movedim(-1, 0)


def alignment_sums(cosine: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sums over tokens from which `Alignment` is made; those of several batches and processes are added up.

    Args:
        cosine: from `alignments`, shape ``(maps, ...)``. What is not finite is left out.
        mask: of that shape, or of one that broadcasts to it; tokens where it is zero are left out.

    Returns:
        Shape ``(maps, SUMS)``, float64, on the device of ``cosine``.

    >>> sums = alignment_sums(torch.tensor([[0.5, 0.2, -0.1]]))
    >>> round(Alignment.of(sums[0]).majority_share, 3)
    0.667
    """
    counted = cosine.isfinite()
    if mask is not None:
        counted &= mask != 0
    maps = len(cosine)
    counted, cosine = counted.reshape(maps, -1), cosine.reshape(maps, -1)
    cosine = torch.where(counted, cosine, torch.zeros_like(cosine))
    weight = counted.double()
    place = ((cosine + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    bins = torch.zeros(maps, BINS, dtype=torch.float64, device=cosine.device).scatter_add_(1, place, weight)
    heads = torch.stack(
        [weight.sum(1), ((cosine > 0) & counted).sum(1).double(), cosine.abs().sum(1, dtype=torch.float64)], 1
    )
    return torch.cat([heads, bins], 1)


@dataclass(frozen=True)
class Alignment:
    """The alignment of the tokens of a batch with one principal direction.

    Attributes:
        tokens: that were counted.
        majority_share: share of the tokens that have the more frequent sign, from .5 (mixed) to 1 (all alike).
        sign_entropy: entropy of the signs in bits, from 1 (mixed) to 0.
        mean_absolute: mean of ``|cos(x, v)|``.
        histogram: shares of the tokens in `BINS` bins of ``cos(x, v)`` from -1 to 1. The sign of ``v`` is a convention.
    """

    tokens: int
    majority_share: float
    sign_entropy: float
    mean_absolute: float
    histogram: tuple[float, ...]

    @classmethod
    def of(cls, sums: Tensor) -> Alignment | None:
        """From `alignment_sums`; ``None`` if no token was counted."""
        total, positive, absolute, *bins = sums.tolist()
        if total < 1:
            return None
        share = positive / total
        entropy = math.fsum(-p * math.log2(p) for p in (share, 1 - share) if p > 0) + 0.0
        return cls(int(total), max(share, 1 - share), entropy, absolute / total, tuple(count / total for count in bins))


def _unit(vector: Tensor) -> Tensor:
    found: Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return found
