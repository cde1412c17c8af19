"""The largest eigenvalue of Adam's preconditioned Hessian at fixed weights. Facts alone, no verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_rksp.capture.hvp import Method, trainable
from hf_rksp.capture.shards import from_vector, to_vector
from hf_rksp.errors import InputError
from hf_rksp.profile.gradients import GradientProbe, Loss, measuring, model_loss, require_measurable
from hf_rksp.spectral.curvature import largest_eigenvalue

#: Of the size of the trainable weights, before the basis grows: roots, scale, start, product, and those of a Hessian product.
_VECTORS = 8


@dataclass(frozen=True)
class EigenvalueAtFloor:
    """The eigenvalue on the parameters whose second moment is above a floor.

    Attributes:
        floor: entries with ``sqrt(v) < floor * eps`` are left out.
        share_left_out: of the trainable entries.
        lambda_max_after_warmup: algebraically largest eigenvalue of ``P^(-1/2) H P^(-1/2)``, in one per learning rate; ``None``
            if no entry is left.
        residual: see `hf_rksp.spectral.curvature.LargestEigenvalue`.
        products: with the operator; each is one Hessian product per batch of the Hessian.
        converged: whether ``residual <= tolerance * |lambda_max_after_warmup|``.
    """

    floor: float
    share_left_out: float
    lambda_max_after_warmup: float | None
    residual: float
    products: int
    converged: bool


@dataclass(frozen=True)
class CurvatureMeasurement:
    """Preconditioned curvature at fixed weights.

    Attributes:
        eps: of Adam.
        batches, hessian_batches: number of batches behind ``v``, and behind the Hessian.
        tolerance: relative residual that counts as converged.
        at_floors: one entry for each floor.
        curvature_method: how Hessian products were computed.
        seconds: wall-clock time.
    """

    eps: float
    batches: int
    hessian_batches: int
    tolerance: float
    at_floors: tuple[EigenvalueAtFloor, ...]
    curvature_method: str
    seconds: float


def measure_curvature(
    model: nn.Module,
    loss: Loss | None,
    batches: Sequence[Any],
    *,
    eps: float = 1e-8,
    floors: Sequence[float] = (10.0, 100.0),
    hessian_batches: int = 1,
    tolerance: float = 1e-2,
    max_products: int = 30,
    seed: int = 0,
    training: bool = False,
    method: Method | Literal["auto"] = "auto",
) -> CurvatureMeasurement:
    """Largest positive eigenvalue of ``P^(-1/2) H P^(-1/2)`` with ``P = diag(sqrt(v) + eps)``, by Lanczos.

    ``v`` is the mean of ``g^2`` over the batches at the present weights, without a step: an estimate of Adam's second moment
    after warm-up. The factor ``1 - beta1^t`` in P (Cohen et al., arXiv:2207.14484) is therefore 1. Beside the graph of a product,
    memory holds up to about 25 vectors of the size of the trainable weights.

    Args:
        model, loss, batches, training, method: as for `hf_rksp.profile.measure_step`.
        eps: of Adam.
        floors: in units of eps, see `EigenvalueAtFloor`.
        hessian_batches: the Hessian is the mean over the first so many batches.
        tolerance, max_products: see `hf_rksp.spectral.curvature.largest_eigenvalue`.
        seed: of the start vector.

    Raises:
        InputError, NonFiniteError: as for `hf_rksp.profile.measure_step`.
    """
    require_measurable(model, batches, _VECTORS)
    if not 1 <= hessian_batches <= len(batches):
        raise InputError(f"hessian_batches={hessian_batches!r}: pass a whole number from 1 to {len(batches)}")
    started = time.perf_counter()
    probe = GradientProbe(model, loss or model_loss, batches, eps, method)
    weights = trainable(model)
    with measuring(model, training):
        dtype = next(iter(weights.values())).dtype
        root = to_vector({name: v.sqrt_() for name, v in probe.second_moment().items()}, weights, dtype)
        at_floors = tuple(
            _at_floor(probe, weights, root, floor, hessian_batches, tolerance, max_products, seed) for floor in floors
        )
    return CurvatureMeasurement(
        eps, len(batches), hessian_batches, tolerance, at_floors, probe.method, time.perf_counter() - started
    )


def _at_floor(
    probe: GradientProbe,
    weights: dict[str, nn.Parameter],
    root: Tensor,
    floor: float,
    batches: int,
    tolerance: float,
    max_products: int,
    seed: int,
) -> EigenvalueAtFloor:
    kept = root >= floor * probe.eps
    share = 1 - float(kept.sum()) / len(kept)
    if not bool(kept.any()):
        return EigenvalueAtFloor(floor, share, None, 0.0, 0, False)
    scale = torch.where(kept, (root + probe.eps).rsqrt(), 0.0)

    def product(vector: Tensor) -> Tensor:
        along, total = from_vector(scale * vector, weights), torch.zeros_like(vector)
        for index in range(batches):
            total += to_vector(probe.product(index, along).product, weights, scale.dtype)
        return total.mul_(scale).div_(batches)

    start = torch.randn(len(root), generator=torch.Generator().manual_seed(seed), dtype=root.dtype).to(root.device)
    largest = largest_eigenvalue(product, start * kept, tolerance=tolerance, max_products=max_products)
    return EigenvalueAtFloor(floor, share, largest.value, largest.residual, largest.products, largest.converged)
