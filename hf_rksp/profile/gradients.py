"""Losses, gradients and Hessian products of batches at the present weights, with what they cost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_rksp.capture.calling import eager, takes, untouched
from hf_rksp.capture.hvp import HessianProduct, Method, gradient_of, hessian_product, inner, require_method, trainable
from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import InputError, NonFiniteError
from hf_rksp.machine import available_memory
from hf_rksp.ranks import Ranks, agreeing, sums_over_ranks

#: Called with the model and a batch; gives a tensor with one number.
Loss = Callable[[nn.Module, Any], Tensor]

_HALF = (torch.float16, torch.bfloat16)


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a transformers model computes itself, on the device of its first weight.

    Raises:
        InputError: the model returns no loss.
    """
    device = next(p.device for p in model.parameters())
    inputs = {name: v.to(device, copy=True) if isinstance(v, Tensor) else v for name, v in batch.items()}
    if takes(model, "use_cache"):
        inputs.setdefault("use_cache", False)
    loss = getattr(model(**inputs), "loss", None)
    if not isinstance(loss, Tensor):
        raise InputError(
            f"loss=None: {type(model).__name__} returns no loss for the inputs {', '.join(inputs)}; "
            "add labels to the batches, or pass loss=, a function of model and batch"
        )
    return loss


def require_measurable(model: nn.Module, batches: Sequence[Any], vectors: int) -> None:
    """Refuse a model or batches on which no step can be measured.

    Args:
        vectors: how many of the size of the trainable weights the measurement keeps.

    Raises:
        InputError: no trainable parameter, trainable parameters in half precision, fewer than two batches, or too little
            memory for the vectors. On a GPU torch says so itself; a system without memory kills the process.
    """
    weights = trainable(model)
    if not weights:
        raise InputError(
            f"model={type(model).__name__}: it has no trainable parameter; set requires_grad on those that train"
        )
    half = next(((name, weight.dtype) for name, weight in weights.items() if weight.dtype in _HALF), None)
    if half:
        raise InputError(
            f"model: its parameter {half[0]!r} is {half[1]}, which rounds a small step away; pass model.float(), "
            "and use torch.autocast in loss= to measure low precision"
        )
    if len(batches) < 2:
        raise InputError(
            f"batches: got {len(batches)}; pass at least two, so that the direction comes from one and the loss from another"
        )
    needed = vectors * sum(weight.numel() * weight.element_size() for weight in weights.values() if weight.is_cpu)
    if needed and needed > (free := available_memory()):
        count = sum(weight.numel() for weight in weights.values())
        raise InputError(
            f"model={type(model).__name__}: {vectors} vectors of its {count:,} trainable weights take {needed / 2**30:.3g} GiB, "
            f"and the passes take more. {free / 2**30:.3g} GiB are free. Measure it on a machine with more memory, or measure a "
            "smaller model of the same kind"
        )


@contextlib.contextmanager
def measuring(model: nn.Module, training: bool) -> Iterator[None]:
    """Run uncompiled and without gradients, in evaluation mode or, with ``training``, in the present mode of each module.

    Flags and the random state are restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    with untouched(model), eager():
        if training:
            for module, mode in modes:
                module.training = mode
        yield


class GradientProbe:
    """Evaluates a model at its present weights, and counts the passes.

    Args:
        model, loss, batches: see `hf_rksp.profile.step.measure_step`.
        eps: entries of a gradient below it count as small.
        method: of Hessian products.
        ranks: the processes that measure together; a process alone by default.
        mine: indexes of the batches whose statistics this process takes; ``None`` for all.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Sequence[Any],
        eps: float,
        method: Method | Literal["auto"],
        ranks: Ranks | None = None,
        mine: Collection[int] | None = None,
    ) -> None:
        require_method(method)
        self.ranks, self.mine = ranks or Ranks(), range(len(batches)) if mine is None else sorted(mine)
        self.model, self.loss, self.batches, self.eps, self.method = model, loss, batches, eps, method
        self.forwards = self.backwards = self.products = 0
        self.sizes = {name: weight.numel() for name, weight in trainable(model).items()}
        self.forget()

    def forget(self) -> None:
        """Drop the statistics: the weights have moved."""
        self.losses: dict[int, float] = {}
        self._squares: dict[int, float] = {}
        self._small: dict[int, int] = {}
        self._sum: dict[str, Tensor] = {}
        self._moved: set[str] = set()

    def run(self, index: int) -> float:
        """Loss of a batch at the present weights, by one forward pass without gradients; it may be anything, NaN too."""
        self.forwards += 1
        with restored(self.model), torch.no_grad():
            return float(self.loss(self.model, self.batches[index]))

    def gradient(self, index: int) -> dict[str, Tensor]:
        """Gradient of a batch, by parameter name."""
        self.forwards, self.backwards = self.forwards + 1, self.backwards + 1
        try:
            loss, gradient = gradient_of(self.model, lambda: self.loss(self.model, self.batches[index]))
        except NonFiniteError as error:
            raise NonFiniteError(f"batches[{index}]: {error}") from error
        self._record(index, loss, gradient)
        return gradient

    def product(self, index: int, vector: Mapping[str, Tensor]) -> HessianProduct:
        """Product of the Hessian of a batch with ``vector``, and the gradient of that batch."""
        try:
            result = hessian_product(
                self.model, lambda: self.loss(self.model, self.batches[index]), vector, self.method
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"batches[{index}]: {error}") from error
        self.forwards, self.backwards = self.forwards + result.forwards, self.backwards + result.backwards
        self.products += 1
        self.method = result.method  # what does not work once is not tried again
        self._record(index, result.loss, result.gradient)
        return result

    def see_all(self) -> None:
        """Take the gradient of every batch of this process that was not seen yet."""
        with agreeing(self.ranks):
            for index in self.mine:
                if index not in self.losses:
                    self.gradient(index)

    def put_together(self) -> None:
        """Give every process the statistics of all batches. Every process has to call it, after `see_all`."""
        if self.ranks.world == 1:
            return
        for found in self.ranks.gather((self.losses, self._squares, self._small, self._moved)):
            losses, squares, small, moved = found
            self.losses |= losses
            self._squares |= squares
            self._small |= small
            self._moved |= moved
        self._sum = self._over_ranks(self._sum)

    def _over_ranks(self, total: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes, by parameter name; a parameter that no process has a gradient of is left out."""
        if self.ranks.world == 1:
            return total
        weights = trainable(self.model)
        present = set().union(*self.ranks.gather(set(total)))
        names = [name for name in weights if name in present]
        sums = sums_over_ranks([total.get(name, torch.zeros_like(weights[name])) for name in names])
        return dict(zip(names, sums, strict=True))

    def second_moment(self) -> dict[str, Tensor]:
        """Mean of ``g^2`` over all batches, by parameter name: gradients at the same weights, without a step."""
        total: dict[str, Tensor] = {}
        with agreeing(self.ranks):
            for index in self.mine:
                for name, g in self.gradient(index).items():
                    total[name] = total[name].addcmul_(g, g) if name in total else g.square()
        return {name: value.div_(len(self.batches)) for name, value in self._over_ranks(total).items()}

    def mean_gradient(self) -> dict[str, Tensor]:
        """Mean over all batches, by parameter name."""
        self.see_all()
        return {name: value / len(self.batches) for name, value in self._over_ranks(self._sum).items()}

    def norms(self) -> tuple[float, ...]:
        """Euclidean norm of the gradient of each batch."""
        return tuple(math.sqrt(self._squares[index]) for index in range(len(self.batches)))

    def noise_scale(self) -> float | None:
        """``tr(Sigma) / |G|^2`` in batches (McCandlish et al., arXiv:1812.06162, appendix A.1), from unbiased estimates of both.

        ``Sigma`` is the covariance of the gradients of batches and ``G`` their expectation. Times the number of sequences in a
        batch, the value is in sequences. ``None`` if the estimate of ``|G|^2`` is not above zero: the batches show noise alone.
        """
        n = len(self.batches)
        each = math.fsum(self._squares.values()) / n
        mean = inner(self._sum, self._sum) / n**2
        signal, noise = (n * mean - each) / (n - 1), (each - mean) * n / (n - 1)
        return noise / signal if signal > 0 else None

    def share_below_eps(self) -> float:
        """Share of the entries of the gradients of all batches with ``|g| < eps``."""
        return sum(self._small.values()) / (len(self.batches) * sum(self.sizes.values()))

    def share_without_gradient(self) -> float:
        """Share of the trainable entries that lie in tensors whose gradient is zero throughout in every batch."""
        return sum(size for name, size in self.sizes.items() if name not in self._moved) / sum(self.sizes.values())

    def _record(self, index: int, loss: float, gradient: Mapping[str, Tensor]) -> None:
        if index in self.losses or index not in self.mine:
            return
        self.losses[index] = loss
        self._squares[index] = inner(gradient, gradient)
        missing = sum(size for name, size in self.sizes.items() if name not in gradient)
        self._small[index] = missing + sum(int((g.abs() < self.eps).sum()) for g in gradient.values())
        for name, g in gradient.items():
            self._sum[name] = self._sum[name].add_(g) if name in self._sum else g.clone()
            if name not in self._moved and bool(g.any()):
                self._moved.add(name)
