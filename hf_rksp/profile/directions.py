"""The direction that an optimizer moves the weights in: a step at learning rate ``lr`` is ``weights - lr * direction``."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.hvp import trainable
from hf_rksp.errors import InputError

#: Gradients by parameter name -> direction by parameter name.
Rule = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
OptimizerName = Literal["adam", "adam_averaged", "sgd", "muon"]
#: A name, a torch optimizer, several that share the weights, or a rule.
OptimizerLike = OptimizerName | torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Rule

#: eps of torch.optim.Adam, and learning rate at which the update of a named optimizer is read (its update is linear in it).
_EPS, _LR = 1e-8, 1e-3
_REMEDY = "pass 'adam', 'adam_averaged', 'sgd', 'muon' or a torch optimizer"


@dataclasses.dataclass(frozen=True)
class Direction:
    """A rule that turns gradients into a direction, with what it leaves out.

    Attributes:
        name: class names of the optimizers, or the name that was passed.
        rule: gradients -> direction; ``None`` for "adam_averaged", which needs the second moments first (`averaged_adam`).
        weight_decay: of each parameter group that holds a trainable parameter. The rule leaves it out.
        eps: of the first group that has one, else 1e-8.
    """

    name: str
    rule: Rule | None
    weight_decay: tuple[float, ...]
    eps: float


def direction_of(model: nn.Module, optimizer: OptimizerLike, eps: float | None = None) -> Direction:
    """The direction rule for ``optimizer``.

    Args:
        model: whose weights it moves.
        optimizer: "adam" is Adam's first direction ``g / (|g| + eps)``. "adam_averaged" is ``g / (sqrt(v) + eps)`` with
            ``v`` the mean of ``g^2`` over the batches: what Adam tends to after warm-up. "sgd" is ``g``, the first direction
            with momentum or without. "muon" is ``torch.optim.Muon`` on the matrices, scaled to the root mean square of Adam
            (``match_rms_adamw``) so that one learning rate serves both, and AdamW on the rest: embeddings, the output layer,
            vectors. A torch optimizer, or several (Muon beside AdamW), gives the update that it would make in its present
            state; its ``lr`` is that of the first group, and other groups keep their ratio to it. A callable is the rule itself.
        eps: of the named optimizers, and the limit below which an entry of a gradient counts as small.

    Raises:
        InputError: the name is unknown, or the optimizer moves no trainable parameter of ``model``.
    """
    if eps is not None and not eps > 0:
        raise InputError(f"eps={eps!r}: pass a number above zero")
    used = _EPS if eps is None else eps
    if isinstance(optimizer, str):
        if optimizer == "muon":
            return dataclasses.replace(
                _from_optimizers(model, muon(model, used), used), name=optimizer, weight_decay=()
            )
        rules: dict[str, Rule | None] = {
            "adam": lambda gradients: {name: g / (g.abs() + used) for name, g in gradients.items()},
            "adam_averaged": None,
            "sgd": dict,
        }
        if optimizer not in rules:
            raise InputError(f"optimizer={optimizer!r}: {_REMEDY}")
        return Direction(optimizer, rules[optimizer], (), used)
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        return Direction(getattr(optimizer, "__name__", type(optimizer).__name__), optimizer, (), used)
    optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    return _from_optimizers(model, [unwrapped(one) for one in optimizers], eps)


def averaged_adam(second_moment: Mapping[str, Tensor], eps: float) -> Rule:
    """The rule ``g / (sqrt(v) + eps)``.

    Args:
        second_moment: v, the mean of ``g^2`` over gradients that were taken without a step, by parameter name. Its bias
            correction is 1.
        eps: as of Adam.
    """
    return lambda gradients: {name: g / (second_moment[name].sqrt() + eps) for name, g in gradients.items()}


def muon(model: nn.Module, eps: float = _EPS) -> list[torch.optim.Optimizer]:
    """``torch.optim.Muon`` for the matrices of ``model`` and AdamW for its other trainable parameters, without decay.

    Raises:
        InputError: the installed torch has no Muon, or the model no matrix for it.
    """
    kind = getattr(torch.optim, "Muon", None)
    if kind is None:
        raise InputError(
            f"optimizer='muon': torch {torch.__version__} has no torch.optim.Muon; install torch 2.9 or later"
        )
    inner = uncompiled(model)
    outer = {id(module.weight) for module in inner.modules() if isinstance(module, nn.Embedding)}
    output = getattr(inner, "get_output_embeddings", None)
    head = output() if callable(output) else None
    outer |= {id(weight) for weight in head.parameters()} if isinstance(head, nn.Module) else set()
    weights = list(trainable(model).values())
    matrices = [weight for weight in weights if weight.ndim == 2 and id(weight) not in outer]
    rest = [weight for weight in weights if weight.ndim != 2 or id(weight) in outer]
    if not matrices:
        raise InputError(
            "optimizer='muon': the model has no trainable matrix beside embeddings and output; pass 'adam'"
        )
    first: torch.optim.Optimizer = kind(matrices, lr=_LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [first, torch.optim.AdamW(rest, lr=_LR, eps=eps, weight_decay=0.0)] if rest else [first]


def _from_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], eps: float | None) -> Direction:
    weights = trainable(model)
    names = {id(weight): name for name, weight in weights.items()}
    groups = [g for o in optimizers for g in o.param_groups if any(id(p) in names for p in g["params"])]
    if not groups:
        raise InputError("optimizer: it moves no trainable parameter of the model; make it from model.parameters()")
    lr = _planned_lr(groups[0])
    if not lr > 0:
        raise InputError(f"optimizer: its first group has lr={lr}; set the learning rate that is planned")

    def rule(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        updates = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    name = names.get(id(weight))
                    if name is not None and name in gradients:
                        updates[name] = _update(optimizer, group, weight, gradients[name]) / lr
        return {name: value.to(weights[name].dtype) for name, value in updates.items()}

    group_eps = next((float(group["eps"]) for group in groups if isinstance(group.get("eps"), float)), _EPS)
    return Direction(
        " + ".join(type(optimizer).__name__ for optimizer in optimizers),
        rule,
        tuple(float(group.get("weight_decay", 0.0)) for group in groups),
        group_eps if eps is None else eps,
    )


def _update(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weight: Tensor, gradient: Tensor) -> Tensor:
    """What ``optimizer`` would subtract from ``weight`` for ``gradient``, without weight decay, in float64.

    A twin of the optimizer steps on a copy of this weight and of its state. Both are float64, because the update is a small
    difference of two weights.
    """
    copy = nn.Parameter(weight.detach().double())
    copy.grad = gradient.double()
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(vars(optimizer))
    twin.__dict__.pop("step", None)  # a scheduler counts the steps of the original there
    twin.__dict__.update(_optimizer_step_pre_hooks=OrderedDict(), _optimizer_step_post_hooks=OrderedDict())
    twin.state = defaultdict(dict)
    if weight in optimizer.state:
        twin.state[copy] = {name: _copied(value) for name, value in optimizer.state[weight].items()}
    twin.param_groups = [{**group, "params": [copy], "lr": _planned_lr(group), "weight_decay": 0.0}]
    try:
        twin.step()
    except TypeError as error:
        raise InputError(
            f"optimizer: {type(optimizer).__name__} takes no step from a gradient alone ({error}); pass another one, or 'adam'"
        ) from error
    return weight.detach().double() - copy.detach()


def _copied(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.double().clone() if value.is_floating_point() and value.ndim else value.clone()


def _planned_lr(group: Mapping[str, Any]) -> float:
    """The learning rate before a scheduler: at the first step of a warm-up the present one is zero."""
    return float(group.get("initial_lr", group["lr"]))


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimizer inside what an engine or accelerate wraps around it.

    Raises:
        InputError: there is none.
    """
    while hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):  # ZeRO's own is no torch optimizer
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer={optimizer!r}: {_REMEDY}")
    return optimizer
