"""Measure forward passes that are not trained on: of all microbatches of a step, before the first of them is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, capture_transitions
from hf_rksp.capture.hooks import model_inputs
from hf_rksp.errors import NonFiniteError
from hf_rksp.profile.gather import Key, MomentSink
from hf_rksp.spectral import SecondMoments
from hf_rksp.training.distributed import reshard


class Survey:
    """While open, forward passes of ``model`` have no gradient and add to the moments of its layers.

    The model keeps its mode, dropout included, and gets its buffers back (the running statistics of a batch norm); the random
    state is put back at the end.

    Attributes:
        moments: of each layer, in the order in which they ran. NaN if a state was not finite.
        passes: number of forward passes.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[Stack]) -> None:
        self.model, self.stacks = getattr(model, "_orig_mod", model), stacks
        self.passes = 0
        self._sink = MomentSink(1)
        self._open = ExitStack()

    @property
    def moments(self) -> dict[Key, SecondMoments]:
        """Of each layer."""
        return {key: parts[0] for key, parts in self._sink.moments.items()}

    def __enter__(self) -> Survey:
        with ExitStack() as stack:
            buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
            stack.callback(_put_back, buffers)
            devices = sorted({p.device.index for p in self.model.parameters() if p.device.type == "cuda"})
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(torch.no_grad())
            stack.enter_context(capture_transitions(self.stacks, self._record))
            stack.callback(self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(reshard, self.model)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.passes += 1
        self._sink.next_batch(model_inputs(args, kwargs))

    def _record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        try:
            self._sink(stack, block, x, y)
        except NonFiniteError:  # the layer is left out of the step, on all processes: NaN stays NaN in their sum
            self._sink.moments[stack.path, block.index][0].mean_x.fill_(torch.nan)


def _put_back(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)
