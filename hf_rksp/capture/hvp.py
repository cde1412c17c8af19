"""Products of the Hessian of a loss with a vector, at the weights of a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_rksp.capture.calling import eager, uncompiled
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
    return math.fsum(float((a[name].detach() * b[name].detach()).sum(dtype=torch.float64)) for name in a if name in b)


def gradient_of(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradient by parameter name as in `HessianProduct`. ``.grad`` and the model stay untouched.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
        InputError: the loss is no scalar, or reaches no trainable parameter.
    """
    weights = trainable(model)
    with restored(model), eager(), torch.enable_grad():
        value = _scalar(loss())
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return float(value.detach()), _named(weights, gradients)


def hessian_product(
    model: nn.Module,
    loss: Callable[[], Tensor],
    vector: Mapping[str, Tensor],
    method: Method | Literal["auto"] = "auto",
) -> HessianProduct:
    """Product of the Hessian of ``loss`` over the trainable parameters with ``vector``. The model stays untouched.

    Double backward is exact up to rounding. It computes ``scaled_dot_product_attention`` by the math kernel, which holds one
    number per head and pair of tokens. Central differences ``(g(w + h v) - g(w - h v)) / 2h`` need first derivatives alone. Their
    ``h ||v||`` is 2e-4 of ``||w||``, where the errors of truncation and of float32 rounding are both near 1e-3.

    Args:
        model: whose parameters the Hessian is over.
        loss: one forward pass; the same numbers are drawn in each of its calls.
        vector: by parameter name; names that are missing count as zero.
        method: "auto" is double backward, and central differences if the loss contains a function without a second
            derivative, or a ``torch.autograd.Function``: torch may silently omit the second derivative of the latter.
            "double_backward" trusts such functions.

    Raises:
        InputError: ``vector`` names something else than a trainable parameter, or the loss is no scalar.
        NonFiniteError: the loss or the gradient is not finite.
    """
    require_method(method)
    weights = trainable(model)
    for name, tensor in vector.items():
        if name not in weights or tensor.shape != weights[name].shape:
            raise InputError(
                f"vector[{name!r}] of shape {tuple(tensor.shape)}: pass tensors that fit trainable parameters, by name"
            )
    spent = 0, 0
    if method != "central_differences":
        try:
            return _double_backward(model, weights, loss, vector, careful=method == "auto")
        except _FirstDerivativeOnly:
            spent = 1, 0
        except RuntimeError as error:
            if method != "auto" or not any(words in str(error) for words in _ONCE):
                raise
            spent = 1, 1
    result = _central_differences(model, weights, loss, vector)
    return replace(result, forwards=result.forwards + spent[0], backwards=result.backwards + spent[1])


def _double_backward(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    loss: Callable[[], Tensor],
    vector: Mapping[str, Tensor],
    careful: bool,
) -> HessianProduct:
    with restored(model), eager(), _twice_differentiable(), torch.enable_grad():
        value = _scalar(loss())
        if careful and _has_own_derivative(value):
            raise _FirstDerivativeOnly
        first = torch.autograd.grad(value, list(weights.values()), allow_unused=True, create_graph=True)
        gradient = _named(weights, first)
        pairs = [(gradient[name], vector[name]) for name in vector if name in gradient and gradient[name].requires_grad]
        product: dict[str, Tensor] = {}
        if pairs:  # a gradient without a graph does not depend on the weights
            second = torch.autograd.grad(
                [g for g, _ in pairs], list(weights.values()), [v.to(g) for g, v in pairs], allow_unused=True
            )
            product = _named(weights, second, "product")
    gradient = {name: g.detach() for name, g in gradient.items()}
    return HessianProduct(float(value.detach()), gradient, product, "double_backward", 1, 2)


def _central_differences(
    model: nn.Module, weights: Mapping[str, Tensor], loss: Callable[[], Tensor], vector: Mapping[str, Tensor]
) -> HessianProduct:
    value, gradient = gradient_of(model, loss)
    length = math.sqrt(inner(vector, vector))
    if not length:
        return HessianProduct(value, gradient, {}, "central_differences", 1, 1)
    size = math.sqrt(inner(weights, weights)) or 1.0
    step = _STEP * size / length
    with virtual_step(model, vector, -step):
        product = gradient_of(model, loss)[1]
    with virtual_step(model, vector, step):
        below = gradient_of(model, loss)[1]
    for name, tensor in below.items():
        product[name] = product[name] - tensor if name in product else -tensor
    product = {name: tensor / (2 * step) for name, tensor in product.items()}
    return HessianProduct(value, gradient, product, "central_differences", 3, 3)


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention whose backward pass has a derivative: the fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class _FirstDerivativeOnly(Exception):
    """The loss goes through a function whose backward pass may have no derivative."""


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
    for name, value in named.items():
        if not math.isfinite(float(value.detach().sum(dtype=torch.float64))):  # in one pass over the entries
            raise NonFiniteError(f"the {what} at {name!r} is not finite; check the weights and the batch")
    return named
