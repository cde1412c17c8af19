"""See the transitions of a training forward pass with their graph, and act on the gradients at their states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.capture.hooks import first_state, model_inputs, not_residual, output_state

#: Gradient at a state -> what to send on instead; ``None`` leaves it as it is.
GradientRule = Callable[[Tensor], Tensor | None]


class Transition:
    """Input and output of one block in the running forward pass, with their graph.

    Attributes:
        stack, block: where.
        x, y: states before and after the block, shape ``(batch, tokens, d)``; gone when `Finish` has returned.
        at_x, at_y: set one to change the gradient that passes through that state in the backward pass.
    """

    __slots__ = ("at_x", "at_y", "block", "stack", "x", "y")

    def __init__(self, stack: Stack, block: Block, x: Tensor) -> None:
        self.stack, self.block, self.x, self.y = stack, block, x, x
        self.at_x: GradientRule | None = None
        self.at_y: GradientRule | None = None


#: Called at the end of a forward pass, before the backward pass, with its transitions and the inputs of the model.
Finish = Callable[[list[Transition], Mapping[str, Any]], None]


class TrainingTap:
    """While open, hands the transitions of every training forward pass of ``model`` to ``finish``.

    A forward pass counts if gradients are on and the block is in training mode, so evaluation and generation inside a
    training run are left alone. Hooks sit on the blocks, outside gradient checkpointing, so each block is seen
    once. Open it before the first call of a model made by ``torch.compile``: hooks that are added later never fire.

    Args:
        model: the module that owns the blocks, without DDP or DeepSpeed around it.
        stacks: from `hf_rksp.capture.find_stacks`.
        finish: see `Finish`.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[Stack], finish: Finish) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self.stacks, self.finish = stacks, finish
        self._handles: list[Any] = []
        self._batch: Mapping[str, Any] = {}
        self._open: dict[str, Transition] = {}
        self._seen: list[Transition] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._in_place = False

    def __enter__(self) -> TrainingTap:
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for stack in self.stacks:
            for block in stack.blocks:
                before, after = self._hooks(stack, block)
                self._handles.append(block.module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(block.module.register_forward_hook(after, with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def _forget(self) -> None:
        self._batch, self._open, self._seen, self._versions = {}, {}, [], []

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._forget()
        self._batch = model_inputs(args, kwargs)

    @torch.compiler.disable
    def _end(self, module: nn.Module, args: tuple, output: object) -> None:
        seen, batch, versions = self._seen, self._batch, self._versions
        self._forget()
        # Some blocks add to their input in place, which is the output of the block before. What it was is gone, so this
        # pass goes without; from now on copies are kept.
        changed = any(state._version != version for state, version in versions)
        self._in_place = self._in_place or changed
        if seen and not changed:
            self.finish(seen, batch)
        for transition in seen:
            # The graph holds the hooks and the hooks hold this: without the states the graph can be freed.
            del transition.x, transition.y

    def _kept(self, state: Tensor) -> Tensor:
        if self._in_place:
            return state.clone()
        self._versions.append((state, state._version))
        return state

    def _hooks(self, stack: Stack, block: Block) -> tuple[Callable[..., None], Callable[..., None]]:
        @torch.compiler.disable
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not (module.training and torch.is_grad_enabled()):
                return
            x = first_state(args, kwargs)
            if x is None:
                raise not_residual(block, x)
            seen = Transition(stack, block, self._kept(x))
            if x.requires_grad:
                x.register_hook(lambda gradient: seen.at_x and seen.at_x(gradient))
            self._open[block.path] = seen

        @torch.compiler.disable
        def after(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            seen = self._open.pop(block.path, None)
            if seen is None:
                return
            y = output_state(output, seen.x)
            if y is None:
                raise not_residual(block, seen.x)
            seen.y = self._kept(y)
            if y.requires_grad:
                y.register_hook(lambda gradient: seen.at_y and seen.at_y(gradient))
            self._seen.append(seen)

        return before, after
