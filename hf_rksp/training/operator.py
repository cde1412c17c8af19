"""The preconditioned Hessian of a run as an operator on vectors, whoever keeps the weights.

A vector has the entries of the trainable weights that this process has, in their order. Without FSDP2 that is all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from hf_rksp.capture.hvp import Hessian, hessian_at
from hf_rksp.capture.shards import copies, from_vector, is_flattened, is_sharded, to_vector
from hf_rksp.errors import InputError
from hf_rksp.ranks import agreeing, current_ranks, sum_over_ranks
from hf_rksp.training.aside import reason


def require_readable(weights: Mapping[str, nn.Parameter]) -> None:
    """Raise `InputError` for weights whose Hessian cannot be multiplied with."""
    if not weights:
        raise InputError("the model has no trainable parameter")
    if is_flattened(weights.values()):
        raise InputError("FSDP1 has made flat parts of the weights; use FSDP2 (fsdp_version: 2)")
    if any(hasattr(weight, "ds_id") for weight in weights.values()):
        raise InputError(
            "ZeRO-3 gathers weights for one backward pass, and a Hessian product needs two; use ZeRO-2 or FSDP2"
        )
    if len({is_sharded(weight) for weight in weights.values()}) > 1:
        raise InputError("some trainable weights are spread over the processes and others are not")


def preconditioned(
    hessian: Hessian, weights: Mapping[str, nn.Parameter], scale: Tensor, spread: Spread
) -> Callable[[Tensor], Tensor]:
    """The operator ``v -> P^(-1/2) H P^(-1/2) v``; what it returns is NaN on every process if it fails on one.

    Args:
        hessian: of this process's batch.
        weights: the trainable parameters.
        scale: shape ``(n,)``, ``P^(-1/2)``; entries of zero are left out of the operator.
        spread: see `Spread`.
    """

    def product(vector: Tensor) -> Tensor:
        found = scale * vector
        try:
            to_vector(hessian.product(from_vector(found, weights)), weights, scale.dtype, out=found)
        except Exception as error:  # also memory that has run out: the others wait for this process in the mean
            spread.error = reason(error)
            found.fill_(math.nan)
        return spread.mean(found).mul_(scale)

    return product


class Spread:
    """How vectors and batches lie over the processes.

    Without FSDP2 every process has whole vectors and batches of its own: products are means over the processes. With FSDP2 a
    process has a part of each vector, its backward pass makes the means, and sums over entries go over the processes.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.ranks = current_ranks()
        self.sharded = any(map(is_sharded, weights.values()))
        self._copies = copies(weights.values()) if self.sharded else 1
        #: Parts of one random vector differ; whole vectors are one.
        self.seed = self.ranks.rank // self._copies if self.sharded else 0
        #: Why a product of this process failed. An exception would keep its frames, and with them the graph of the reading.
        self.error: str | None = None

    def mean(self, vector: Tensor) -> Tensor:
        """``vector`` of a batch, as the mean over the batches of all processes."""
        return vector if self.sharded or self.ranks.world == 1 else sum_over_ranks(vector).div_(self.ranks.world)

    def total(self, sums: Tensor) -> Tensor:
        """Sums over entries."""
        return sum_over_ranks(sums).div(self._copies) if self.sharded else sums

    def sum(self, value: Tensor) -> float:
        """One sum over entries, on the host."""
        return float(self.total(value.double()[None]))

    @contextmanager
    def hessian(self, model: nn.Module, loss: Callable[[], Tensor]) -> Iterator[Hessian]:
        """`hessian_at`, entered by all processes or by none."""
        with ExitStack() as stack:
            if self.sharded:  # its passes have collectives
                yield stack.enter_context(hessian_at(model, lambda: self._finite(loss())))
            else:
                with agreeing(self.ranks):
                    hessian = stack.enter_context(hessian_at(model, loss))
                yield hessian

    def _finite(self, value: Tensor) -> Tensor:
        """``value``; NaN on every process if one's is not finite, because the others would wait for one that raised alone."""
        broken = sum_over_ranks((~value.detach().isfinite()).double())
        return value * torch.where(broken > 0, torch.nan, 1.0).to(value)
