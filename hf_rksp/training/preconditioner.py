"""What the optimizer of a run divides gradients by: read from its state, whoever keeps that state.

Adam's operator is ``P^(-1/2) H P^(-1/2)`` with ``P = diag(sqrt(v / (1 - beta2^t)) + eps)`` (Cohen et al., arXiv:2207.14484, without
their factor ``1 - beta1^t``, which is a number of its own here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.shards import local
from hf_rksp.errors import InputError
from hf_rksp.profile.directions import unwrapped
from hf_rksp.ranks import agreeing, current_ranks, sum_over_ranks

#: Entries with ``sqrt(v)`` below so many eps are left out: their P is eps itself, and their curvature over it has no meaning.
_FLOOR = 10.0
#: Optimizers whose step is that of Adam; those of DeepSpeed and apex are known by name, because they may not be installed.
_ADAM = ("Adam", "AdamW", "FusedAdam", "DeepSpeedCPUAdam")
_READABLE = "Adam, AdamW (of torch, DeepSpeed or apex) and SGD can be read"


@dataclass(frozen=True)
class Preconditioner:
    """``P^(-1/2)``, and the limits that curvature over P has.

    Attributes:
        scale: shape ``(n,)``: ``(lr_i / lr)^(1/2) P_i^(-1/2)`` of each entry of the trainable weights that this process has, 0 for
            those that are left out. Groups with a learning rate of their own so become one operator.
        lr: the largest of all groups, in the units of which eigenvalues are.
        one_step_limit: eigenvalue times lr above which one step without momentum overshoots: 2.
        momentum_limit: eigenvalue times lr at which the optimizer itself becomes unstable on a quadratic.
        warm: ``1 - beta1^t``, the share of Adam's bias correction that the momentum has.
    """

    scale: Tensor
    lr: float
    momentum_limit: float
    warm: float
    one_step_limit: float = 2.0


def read_preconditioner(optimizer: object, weights: Mapping[str, nn.Parameter]) -> Preconditioner:
    """The preconditioner after the last step of ``optimizer``. Every process has to call it, and all raise or none.

    Args:
        optimizer: of torch, also with accelerate or DeepSpeed (ZeRO 1 and 2) around it, or with FSDP2's sharded state.
        weights: the trainable parameters, by name; ``scale`` is in their order.

    Raises:
        InputError: the optimizer keeps no second moment per entry, or has made no step.
    """
    with agreeing(current_ranks()):
        inner = unwrapped(optimizer)
        groups = _groups(optimizer, inner)
        name = type(inner).__name__
        used = [groups[id(weight)] for weight in weights.values() if id(weight) in groups]
        if not used:
            raise InputError(f"optimizer={name}: it moves no trainable parameter of the model")
        reference = max(used, key=lambda group: float(group["lr"]))
        if name == "SGD":
            return _sgd(weights, groups, reference)
        if name not in _ADAM and not isinstance(inner, torch.optim.Adam):
            raise InputError(f"optimizer={name}: it keeps no second moment per entry that is known here. {_READABLE}")
        scale, steps = _second_moments(inner, groups, weights)
        if not steps:
            raise InputError(f"optimizer={name}: it has made no step, so it has no second moment yet")
    if _is_zero(weights):  # each process has a part, and the others zeros there
        scale = sum_over_ranks(scale)
    for weight, part in zip(weights.values(), scale.split(_sizes(weights)), strict=True):
        if weight not in steps:
            part.zero_()
            continue
        group = groups[id(weight)]
        root = part.sqrt_()
        if group.get("bias_correction", True):
            root.div_(math.sqrt(1 - float(group["betas"][1]) ** steps[weight]))
        eps, share = float(group["eps"]), _share(group, reference)
        part.copy_(torch.where(root >= _FLOOR * eps, (root + eps).rsqrt().mul_(math.sqrt(share)), 0.0))
    beta1 = float(reference["betas"][0])
    warm = 1 - beta1 ** max(steps.values()) if reference.get("bias_correction", True) else 1.0
    limit = (2 + 2 * beta1) / (1 - beta1)
    return Preconditioner(scale, float(reference["lr"]), limit, warm)


def largest_rate(optimizer: object) -> float | None:
    """The largest learning rate of the groups of ``optimizer`` now; ``None`` if it has none that can be read."""
    return _largest(optimizer, "lr")


def planned_rate(optimizer: object) -> float | None:
    """The largest learning rate that a schedule begins with, before its factor; ``None`` without a schedule that can be read."""
    return _largest(optimizer, "initial_lr")


def _largest(optimizer: object, key: str) -> float | None:
    try:
        return max(float(group[key]) for group in unwrapped(optimizer).param_groups)
    except (InputError, KeyError, ValueError, TypeError):
        return None


def device_rate(optimizer: object, factor: float = 1.0) -> Tensor | float | None:
    """`largest_rate` times ``factor``; a tensor if the optimizer keeps its rates on the device, which nobody waits for."""
    try:
        rates = [group["lr"] for group in unwrapped(optimizer).param_groups]
        there = [rate.detach().reshape(()) for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
        if there and len(there) == len(rates):
            return torch.stack(there).amax() * factor
        return max(map(float, rates)) * factor
    except (InputError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def _second_moments(
    inner: torch.optim.Optimizer, groups: Mapping[int, Mapping[str, Any]], weights: Mapping[str, nn.Parameter]
) -> tuple[Tensor, dict[nn.Parameter, float]]:
    """``v`` of the entries that this process has, shape ``(n,)``, and the steps that the optimizer has made of each weight."""
    first = next(iter(weights.values()))
    sizes = _sizes(weights)
    moments = torch.zeros(sum(sizes), dtype=_dtype(first), device=local(first).device)
    steps: dict[nn.Parameter, Any] = {}
    for weight, part in zip(weights.values(), moments.split(sizes), strict=True):
        group = groups.get(id(weight))
        if group is None:
            continue
        name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
        # ZeRO 1 and 2 keep one flat part per group. Their safe_get_full_optimizer_state knows the first group alone.
        zero, fragment = hasattr(weight, "_hp_mapping"), getattr(weight, "_hp_mapping", None)
        state = inner.state.get(group["params"][0] if zero else weight)
        if not state or name not in state:
            continue
        steps[weight] = state.get("step", group.get("step"))
        if not zero:
            part.copy_(local(state[name]).detach().reshape(-1))
        elif fragment is not None:
            here, there = fragment.lp_fragment_address, fragment.hp_fragment_address
            part[here.start : here.start + here.numel] = state[name][there.start : there.start + there.numel]
    return moments, dict(zip(steps, _numbers(list(steps.values())), strict=True))


def _numbers(values: Sequence[Any]) -> list[float]:
    """Plain numbers of ``values``; of tensors in one transfer, because fused optimizers count their steps on the device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) < len(values) or not tensors:
        return [float(value) for value in values]
    found: list[float] = torch.stack([value.reshape(()).to(tensors[0].device) for value in tensors]).double().tolist()
    return found


def _sizes(weights: Mapping[str, nn.Parameter]) -> list[int]:
    return [local(weight).numel() for weight in weights.values()]


def _is_zero(weights: Mapping[str, nn.Parameter]) -> bool:
    return any(hasattr(weight, "_hp_mapping") for weight in weights.values())


def _sgd(
    weights: Mapping[str, nn.Parameter], groups: Mapping[int, Mapping[str, Any]], reference: Mapping[str, Any]
) -> Preconditioner:
    """P is 1. The limits of heavy ball and of Nesterov's momentum are those of a quadratic (Cohen et al., arXiv:2103.00065)."""
    parts = [
        torch.full_like(
            local(weight).detach().reshape(-1).to(_dtype(weight)),
            math.sqrt(_share(groups[id(weight)], reference)) if id(weight) in groups else 0.0,
        )
        for weight in weights.values()
    ]
    beta = float(reference["momentum"])
    limit = (2 + 2 * beta) / ((1 + 2 * beta) if reference["nesterov"] else (1 - float(reference["dampening"])))
    scale = torch.cat(parts)
    return Preconditioner(scale, float(reference["lr"]), limit, 1.0)


def _dtype(weight: Tensor) -> torch.dtype:
    """Low precision has too few digits for differences of gradients and sums."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _share(group: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Learning rate of a group over the largest; at the end of a schedule both may be zero."""
    rate, first = float(group["lr"]), float(reference["lr"])
    return rate / first if first else 1.0


def _groups(optimizer: object, inner: torch.optim.Optimizer) -> dict[int, Mapping[str, Any]]:
    """Settings by the identity of the parameter. ZeRO gives the torch optimizer flat parts instead, in the order of the groups."""
    while optimizer is not None and not hasattr(optimizer, "bit16_groups"):
        optimizer = getattr(optimizer, "optimizer", None)
    named = [group["params"] for group in inner.param_groups] if optimizer is None else optimizer.bit16_groups
    return {id(weight): group for group, params in zip(inner.param_groups, named, strict=True) for weight in params}
