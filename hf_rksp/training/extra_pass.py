"""Forward passes and losses beside those of the run: what they change is put back."""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_rksp.capture import Layouts, untouched
from hf_rksp.capture.calling import eager, forked_random_state, forward, reshard
from hf_rksp.errors import CaptureError, InputError

#: Buffers that are put back have at most so many numbers: running statistics do, tables of quantised weights do not.
_LARGEST_BUFFER = 2**20
#: A run probes so often; batches of ever new kinds are then left out.
_MOST_PROBES = 8


@contextlib.contextmanager
def extra_passes(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes of ``model`` have no gradient.

    The model keeps its mode, dropout included. At the end it gets its buffers back (the running statistics of a batch norm), and
    the random states of torch, numpy and Python are put back. A model that changes anything else in its forward pass (the tables
    of dynamic rotary positions) is changed by such a pass.
    """
    buffers, python, numbers = _buffers(model), random.getstate(), numpy.random.get_state()
    try:
        with forked_random_state(model), warnings.catch_warnings(), torch.no_grad():
            # Of reentrant checkpointing, which is right: there are no gradients here.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
            yield
    finally:
        with torch.no_grad():
            reshard(model)
            _put_back(buffers)
        random.setstate(python)
        numpy.random.set_state(numbers)


def loss_beside(trainer: Trainer, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The loss of one prepared batch, as `Trainer.prediction_step` computes it: a loss of one's own gets the number of its tokens.

    It is that of this process: the processes need not ask for equally many losses.

    Raises:
        InputError: the loss is no tensor.
    """
    # One batch in one process: not spread over devices, and not one of several that are accumulated.
    alone = {"average_tokens_across_devices": False, "_n_gpu": 1}
    with _with_attributes(trainer.args, alone), _with_attributes(trainer, {"current_gradient_accumulation_steps": 1}):
        items = trainer._get_num_items_in_batch([inputs], next(model.parameters()).device)
        loss = trainer.compute_loss(model, dict(inputs), num_items_in_batch=items)
    if not isinstance(loss, Tensor):
        raise InputError(f"compute_loss returns a {type(loss).__name__}, and a tensor with one number is needed")
    return loss


@contextlib.contextmanager
def _with_attributes(owner: object, values: Mapping[str, Any]) -> Iterator[None]:
    """Inside, ``owner`` has these attributes."""
    own = vars(owner)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            del own[name]
        own.update(before)


def settle(layouts: Layouts, model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Probe ``model`` between two passes of the run, with what it was called with.

    Raises:
        CaptureError: the model cannot be probed here, or the probe does not tell.
    """
    if any(hasattr(weight, "ds_id") or type(weight).__name__ == "DTensor" for weight in model.parameters()):
        raise CaptureError(
            "sizes alone do not say which states are tokens, and a model whose weights lie on several processes cannot be run "
            "beside its own pass to find out: pass batches of one kind of input without padding"
        )
    if layouts.probes >= _MOST_PROBES:
        raise CaptureError(
            f"sizes alone do not say which states are tokens, and {layouts.probes} probes were not enough for the batches of this "
            "run, each of another kind: pass batches of one length"
        )
    with extra_passes(model), untouched(model), eager():
        layouts.learn(functools.partial(forward, model), inputs, stop=False)


@dataclass(frozen=True)
class _Buffer:
    """A buffer as it was: where it is, the tensor, and its numbers."""

    module: nn.Module
    name: str
    tensor: Tensor | None
    numbers: Tensor | None


def _buffers(model: nn.Module) -> list[_Buffer]:
    return [
        _Buffer(module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is None or buffer.numel() <= _LARGEST_BUFFER
    ]


def _put_back(buffers: Sequence[_Buffer]) -> None:
    for kept in buffers:
        # One that is as it was is left alone: the backward pass may need it, and would take a copy for a change.
        if kept.tensor is not None and kept.numbers is not None and not torch.equal(kept.tensor, kept.numbers):
            kept.tensor.copy_(kept.numbers)
        kept.module._buffers[kept.name] = kept.tensor
