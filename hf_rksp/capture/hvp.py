"""Products of the Hessian of a loss with a vector, at the weights of a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_rksp.capture.calling import eager, uncompiled
from hf_rksp.capture.shards import full_sum, is_sharded
from hf_rksp.capture.virtual_step import restored, virtual_step
from hf_rksp.errors import InputError, NonFiniteError

Method = Literal["double_backward", "central_differences"]

#: Parts of the messages of torch about functions without a second derivative.
_ONCE = ("derivative for", "differentiate twice", "double backward")
#: Length of the step of central differences as a share of the norm of the weights. Models in float64 too may compute their loss
#: in float32, as those of transformers do.
_STEP = 2e-4


@dataclass(frozen=True)
class HessianProduct:
    """A product, with the loss and the gradient at the same weights.

    Attributes:
        loss: at the weights.
        gradient: by parameter name. A name is missing if the loss does not depend on the parameter.
        product: ``H v``, by parameter name. A name is missing if its gradient does not depend on the weights: the product is zero.
        method: how the product was computed.
        forwards, backwards: passes that this took, also for a double backward that was given up; each of its two backward
            passes counts.
    """

    loss: float
    gradient: dict[str, Tensor]
    product: dict[str, Tensor]
    method: Method
    forwards: int
    backwards: int


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; a tied weight is one parameter, under the first of its names."""
    return {name: weight for name, weight in uncompiled(model).named_parameters() if weight.requires_grad}


def require_method(method: str) -> None:
    """Raise `InputError` unless ``method`` is one of `hessian_product`."""
    if method not in ("auto", "double_backward", "central_differences"):
        raise InputError(f"method={method!r}: pass 'auto', 'double_backward' or 'central_differences'")


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Sum over all entries of ``a * b`` in float64; a name that one of both lacks counts as zero."""
    return math.fsum(_on_host([full_sum(a[name].detach() * b[name].detach()) for name in a if name in b]))


def _on_host(sums: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, in one transfer."""
    return torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []


def gradient_of(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradient by parameter name as in `HessianProduct`. ``.grad`` and the model stay untouched.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
        InputError: the loss is no scalar, or reaches no trainable parameter.
    """
    weights = trainable(model)
    with restored(model), eager(), torch.enable_grad():
        value = _scalar(loss())
        gradients = _gradients(value, list(weights.values()))
    return float(value.detach()), _named(weights, gradients)


def _gradients(value: Tensor, weights: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not any(map(is_sharded, weights)):
        return torch.autograd.grad(value, weights, allow_unused=True)
    # FSDP2 adds up gradients where backward leaves them, and nowhere else.
    before = [weight.grad for weight in weights]
    try:
        for weight in weights:
            weight.grad = None
        value.backward()
        return tuple(weight.grad for weight in weights)
    finally:
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient


def hessian_product(
    model: nn.Module,
    loss: Callable[[], Tensor],
    vector: Mapping[str, Tensor],
    method: Method | Literal["auto"] = "auto",
) -> HessianProduct:
    """Product of the Hessian of ``loss`` over the trainable parameters with ``vector``. The model stays untouched.

    For several products at the same weights see `hessian_at`, which has the arguments and raises the errors of this function.

    Raises:
        InputError: ``vector`` names something else than a trainable parameter.
    """
    require_method(method)
    with hessian_at(model, loss, method) as hessian:
        product = hessian.product(vector)
    return HessianProduct(hessian.loss, hessian.gradient, product, hessian.method, hessian.forwards, hessian.backwards)


@contextlib.contextmanager
def hessian_at(
    model: nn.Module, loss: Callable[[], Tensor], method: Method | Literal["auto"] = "auto"
) -> Iterator[Hessian]:
    """The Hessian of ``loss`` over the trainable parameters at the present weights, for products inside the context.

    Double backward is exact up to rounding. It computes ``scaled_dot_product_attention`` by the math kernel, which holds one
    number per head and pair of tokens. The graph of the gradient is kept, so a product after the first takes one backward pass.
    Central differences ``(g(w + h v) - g(w - h v)) / 2h`` need first derivatives alone. Their ``h ||v||`` is 2e-4 of ``||w||``,
    where the errors of truncation and of float32 rounding are both near 1e-3.

    Args:
        model: whose parameters the Hessian is over.
        loss: one forward pass; the same numbers are drawn in each of its calls.
        method: "auto" is double backward, and central differences if the loss contains a function without a second
            derivative, or a ``torch.autograd.Function``: torch may silently omit the second derivative of the latter.
            "double_backward" trusts such functions.

    Raises:
        InputError: the loss is no scalar.
        NonFiniteError: the loss or the gradient is not finite.
    """
    require_method(method)
    with restored(model), eager(), torch.enable_grad():
        hessian = Hessian(model, loss, method)
        try:
            yield hessian
        finally:
            hessian.close()


class Hessian:
    """See `hessian_at`.

    Attributes:
        loss: at the weights.
        gradient: by parameter name. A name is missing if the loss does not depend on the parameter. Products do not need it:
            it may be cleared.
        method: how products are computed.
        forwards, backwards: passes so far, as in `HessianProduct`.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], method: Method | Literal["auto"]) -> None:
        self._model, self._loss, self._auto = model, loss, method == "auto"
        self._weights = trainable(model)
        #: Where a product enters the graph of the gradient. The numbers of the gradient are not kept for it.
        self._edges: dict[str, GradientEdge] = {}
        self.forwards = self.backwards = 0
        # FSDP2 gathers weights for one backward pass; a second one through it has none.
        sharded = any(map(is_sharded, self._weights.values()))
        self.method: Method = "central_differences" if sharded or method == "central_differences" else "double_backward"
        if self.method == "central_differences" or not self._differentiated():
            self.method = "central_differences"
            self.loss, self.gradient = self._gradient()

    def _differentiated(self) -> bool:
        """Loss and gradient with the graph of the gradient; false if there is none to trust."""
        self.forwards += 1
        with _twice_differentiable():
            value = _scalar(self._loss())
            if self._auto and _has_own_derivative(value):
                return False
            self.backwards += 1
            try:
                first = torch.autograd.grad(value, list(self._weights.values()), allow_unused=True, create_graph=True)
            except RuntimeError as error:
                if not self._once(error):
                    raise
                return False
        named = _named(self._weights, first)
        # A gradient without a graph does not depend on the weights.
        self._edges = {name: get_gradient_edge(g) for name, g in named.items() if g.requires_grad}
        self.loss = float(value.detach())
        self.gradient = {name: g.detach() for name, g in named.items()}
        return True

    def product(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``H v``, by parameter name. A name is missing if its gradient does not depend on the weights: the product is zero.

        Args:
            vector: by parameter name; names that are missing count as zero.

        Raises:
            InputError: ``vector`` names something else than a trainable parameter.
            NonFiniteError: the product is not finite.
        """
        for name, tensor in vector.items():
            if name not in self._weights or tensor.shape != self._weights[name].shape:
                raise InputError(
                    f"vector[{name!r}] of shape {tuple(tensor.shape)}: pass tensors that fit trainable parameters, by name"
                )
        if self.method == "double_backward":
            pairs = [(self._edges[n], v.to(self._weights[n])) for n, v in vector.items() if n in self._edges]
            if not pairs:
                return {}
            try:
                self.backwards += 1
                with _twice_differentiable():
                    second = torch.autograd.grad(
                        [edge for edge, _ in pairs],
                        list(self._weights.values()),
                        [v for _, v in pairs],
                        allow_unused=True,
                        retain_graph=True,
                    )
                return _named(self._weights, second, "product")
            except RuntimeError as error:
                if not self._once(error):
                    raise
            self.close()
            self.method = "central_differences"
        return self._differences(vector)

    def _once(self, error: RuntimeError) -> bool:
        """Whether ``error`` says that a second derivative is missing, and differences may be taken instead."""
        return self._auto and any(words in str(error) for words in _ONCE)

    def _gradient(self) -> tuple[float, dict[str, Tensor]]:
        self.forwards, self.backwards = self.forwards + 1, self.backwards + 1
        return gradient_of(self._model, self._loss)

    def _differences(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        length = math.sqrt(inner(vector, vector))
        if not length:
            return {}
        step = _STEP * (math.sqrt(inner(self._weights, self._weights)) or 1.0) / length
        with virtual_step(self._model, vector, -step):
            product = self._gradient()[1]
        with virtual_step(self._model, vector, step):
            below = self._gradient()[1]
        for name, tensor in below.items():
            product[name] = product[name] - tensor if name in product else -tensor
        return {name: tensor / (2 * step) for name, tensor in product.items()}

    def close(self) -> None:
        """Let go of the graph."""
        self._edges = {}


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention whose backward pass has a derivative: the fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _has_own_derivative(loss: Tensor) -> bool:
    """Whether the graph of ``loss`` has a function whose derivative is written in Python, as those of fused kernels are.

    If its backward pass has no derivative, torch omits that part of a product without an error.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        waiting += [after for after, _ in node.next_functions]
    return False


def _scalar(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss: it returned {shape}; return a tensor with one number")
    if not bool(value.isfinite()):
        raise NonFiniteError(f"loss={float(value.detach())}: it has to be finite; check the weights and the batch")
    if not value.requires_grad:
        raise InputError(
            "loss: it depends on no trainable parameter; set requires_grad on one, and do not detach the loss"
        )
    return value.reshape(())


def _named(
    weights: Mapping[str, Tensor], values: tuple[Tensor | None, ...], what: str = "gradient"
) -> dict[str, Tensor]:
    named = {name: value for name, value in zip(weights, values, strict=True) if value is not None}
    # Sharded ones are not looked at: a process that raised alone would leave the others waiting.
    whole = {name: value for name, value in named.items() if not is_sharded(value)}
    sums = _on_host([value.detach().sum(dtype=torch.float64) for value in whole.values()])
    for name, total in zip(whole, sums, strict=True):
        if not math.isfinite(total):
            raise NonFiniteError(f"the {what} at {name!r} is not finite; check the weights and the batch")
    return named
