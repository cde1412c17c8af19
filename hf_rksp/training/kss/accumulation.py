"""Measure all microbatches of a step before the first of them is trained on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, capture_transitions
from hf_rksp.capture.attach import Attached
from hf_rksp.capture.calling import model_inputs
from hf_rksp.errors import NonFiniteError
from hf_rksp.profile.gather import Key, MomentSink
from hf_rksp.spectral import SecondMoments
from hf_rksp.training.aside import Aside
from hf_rksp.training.extra_pass import extra_passes
from hf_rksp.training.watch import Watch


class StepMoments:
    """While open, forward passes of ``model`` have no gradient and add to the moments of its layers.

    The passes are those of `extra_passes`, so that those that are trained on draw the same.

    Args:
        watch: the model, its blocks, and how its states are read.
        aside: is told of layers that cannot be read; they are left out of the step.

    Attributes:
        passes: number of forward passes.
    """

    def __init__(self, watch: Watch, aside: Aside) -> None:
        self.watch, self.aside = watch, aside
        self.passes = 0
        self._sink = MomentSink(watch.layouts, 1)
        self._broken: set[Key] = set()
        self._open = ExitStack()

    @property
    def moments(self) -> dict[Key, SecondMoments]:
        """Of each layer that is trained, in the order in which they first ran; NaN if a state was not finite."""
        return {key: parts[0] for key, parts in self._sink.moments.items() if key not in self._broken}

    def __enter__(self) -> StepMoments:
        with ExitStack() as stack:
            stack.enter_context(extra_passes(self.watch.model))
            self._runs = stack.enter_context(capture_transitions(self.watch.stacks, self._record, self._leave_out))
            hooks = Attached()
            stack.callback(hooks.remove)
            hooks.before(self.watch.model, self._begin)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.passes += 1
        self._runs.next_pass()
        self._sink.next_batch(self.watch.described(model_inputs(module, args, kwargs)))

    def _record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        key = (stack.path, block.index)
        if not block.module.training or key in self._broken:
            return
        try:
            self._sink(stack, block, x, y)
        except NonFiniteError:  # the layer is left out of the step, on all processes: NaN stays NaN in their sum
            self._sink.moments[key][0].mean_x.fill_(torch.nan)
        except Exception as error:
            self._leave_out(stack, block, error)

    def _leave_out(self, stack: Stack, block: Block, error: Exception) -> None:
        if block.module.training:
            self._broken.add((stack.path, block.index))
            self.aside(f"layer {block.path}", error)
