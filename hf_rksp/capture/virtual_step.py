"""Take a training step, look, and undo it to the bit."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from hf_rksp.capture.calling import forked_random_state, uncompiled
from hf_rksp.errors import InputError


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undo afterwards what a forward pass may change: buffers, modules, attributes and hooks of a module, and the random state.

    An attribute gets its value back, and not what was in a list or a mapping. Hooks are put back as they were, because a model of
    transformers hooks its blocks in the first pass that returns hidden states, and marks itself so that it is not hooked twice: the
    mark and the hooks have to go together. The random state is that of torch, of generators that modules hold, of Python and of
    NumPy. Two forward passes, each in such a context, draw the same numbers.
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    # BigBird replaces its attention if a text is short; RecurrentGemma keeps its last state.
    attributes = [
        (module, type(module), dict(vars(module)), dict(module._modules), [(t, dict(t)) for t in _hooks_of(module)])
        for module in model.modules()
    ]
    copies = {id(b): (b, b.detach().clone()) for _, named in buffers for b in named.values() if b is not None}
    python, numpys = random.getstate(), numpy.random.get_state()
    try:
        with forked_random_state(model):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numpys)
        with torch.no_grad():
            for buffer, copy in copies.values():
                buffer.copy_(copy)
        for module, kind, values, children, hooks in attributes:
            vars(module).clear()
            vars(module).update(values)
            module._modules.clear()
            module._modules.update(children)
            if type(module) is kind:  # a lazy module has become another one, and its hook has gone with what it was
                for table in _hooks_of(module):
                    table.clear()
                for table, entries in hooks:
                    table.update(entries)
        for module, named in buffers:  # a module may also have put another tensor there
            module._buffers.clear()
            module._buffers.update(named)


#: Where a module keeps its hooks.
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "_hooks" in name and isinstance(value, dict))


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """The tables that hold any."""
    own = vars(module)
    return [table for name in _HOOKS if (table := own.get(name))]


@contextlib.contextmanager
def virtual_step(model: nn.Module, direction: Mapping[str, Tensor], lr: float) -> Iterator[None]:
    """Move the weights by ``-lr * direction`` inside the context, and restore them to the bit, also after an exception.

    The context also restores buffers and the random state (`restored`). It holds a copy of the weights that it moves. A loss that
    is computed inside has to be differentiated inside. Contexts may be nested.

    Args:
        model: any module, also one wrapped by ``torch.compile``.
        direction: name of a parameter, as in ``model.named_parameters()`` -> tensor of its shape. A tied weight is one
            parameter and moves once.
        lr: learning rate.

    Raises:
        InputError: ``lr`` is not finite, or ``direction`` fits no parameter.
    """
    weights = dict(uncompiled(model).named_parameters())
    if not math.isfinite(lr):
        raise InputError(f"lr={lr!r}: pass a finite number")
    for name, tensor in direction.items():
        if name not in weights:
            raise InputError(
                f"direction[{name!r}]: {type(model).__name__} has no such parameter; take the names of "
                "model.named_parameters(), where a tied weight has the first of its names alone"
            )
        if tensor.shape != weights[name].shape:
            raise InputError(
                f"direction[{name!r}] has shape {tuple(tensor.shape)}: the parameter has {tuple(weights[name].shape)}"
            )
    before = {name: weights[name].detach().clone() for name in direction}
    with restored(model):
        try:
            with torch.no_grad():
                for name, tensor in direction.items():
                    weights[name].sub_(tensor.to(weights[name]), alpha=lr)
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    weights[name].copy_(value)
