"""See the transitions of a training forward pass with their graph, and act on the gradients at their states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.attach import Attached
from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.capture.calling import model_inputs, uncompiled
from hf_rksp.capture.hooks import Refuse, Runs
from hf_rksp.capture.refusals import not_residual
from hf_rksp.capture.states import first_state, output_state

#: Gradient at a state -> what to send on instead; ``None`` leaves it as it is.
GradientRule = Callable[[Tensor], Tensor | None]


class Transition:
    """Input and output of one block in the running forward pass, with their graph.

    Attributes:
        stack, block: where; a module that runs several times is a block for each run.
        run: 0, 1, 2, ... where one module runs several times in a forward pass.
        x, y: states before and after the block, shape ``(batch, tokens, d)``; gone when `Finish` has returned.
        at_x, at_y: set one to change the gradient that passes through that state in the backward pass.
        overwritten: whether a later block has changed one of the states in place, so that what it was is gone.
    """

    __slots__ = ("at_x", "at_y", "block", "overwritten", "run", "stack", "x", "y")

    def __init__(self, stack: Stack, block: Block, x: Tensor, run: int = 0) -> None:
        self.stack, self.block, self.run, self.x, self.y = stack, block, run, x, x
        self.at_x: GradientRule | None = None
        self.at_y: GradientRule | None = None
        self.overwritten = False


#: Called at the end of a forward pass, before the backward pass, with its transitions and the inputs of the model.
Finish = Callable[[list[Transition], Mapping[str, Any]], None]


@dataclass
class _Pass:
    """What was seen of a forward pass that goes on; inside it there may be another, of a teacher or of a hook of the user's."""

    batch: Mapping[str, Any]
    runs: Runs = field(default_factory=Runs)
    open: dict[str, list[Transition | None]] = field(default_factory=dict)
    seen: list[Transition] = field(default_factory=list)
    versions: list[tuple[Transition, Tensor, int]] = field(default_factory=list)


class TrainingTap:
    """While open, hands the transitions of every training forward pass of ``model`` to ``finish``.

    A forward pass counts if gradients are on and the block is in training mode, so evaluation and generation inside a
    training run are left alone. Hooks sit on the blocks, outside gradient checkpointing, so each block is seen
    once. Open it before the first call of a model made by ``torch.compile``: hooks that are added later never fire. Copies that
    are made of the model meanwhile have no hooks.

    Args:
        model: the module that owns the blocks, without DDP or DeepSpeed around it.
        stacks: from `hf_rksp.capture.find_stacks`.
        finish: see `Finish`; called with no transitions where a pass of a model in training mode has shown none.
        refuse: called instead of the error below.

    Raises:
        CaptureError: (from the forward pass) a block takes no hidden state, or returns one of another shape.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[Stack], finish: Finish, refuse: Refuse | None = None) -> None:
        self.model = uncompiled(model)
        self.stacks, self.finish, self.refuse = stacks, finish, refuse
        self._hooks = Attached()
        self._passes: list[_Pass] = []
        self._in_place = False

    def __enter__(self) -> TrainingTap:
        self._hooks.before(self.model, self._begin)
        for stack in self.stacks:
            for block in stack.blocks:
                self._watch(stack, block)
        self._hooks.after(self.model, self._end, always_call=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.remove()
        self._passes = []

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._passes.append(_Pass(model_inputs(module, args, kwargs)))

    def _end(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if not self._passes:  # opened while the model was running
            return
        now = self._passes.pop()
        if output is None:  # it has raised
            return
        # Some blocks add to their input in place, which is the output of the block before. What it was is gone, so this
        # pass goes without; from now on copies are kept.
        for transition, state, version in now.versions:
            if state._version != version:
                transition.overwritten = self._in_place = True
        if now.seen or (module.training and torch.is_grad_enabled()):
            self.finish(now.seen, now.batch)
        for transition in now.seen:
            # The graph holds the hooks and the hooks hold this: without the states the graph can be freed.
            del transition.x, transition.y

    def _kept(self, seen: Transition, state: Tensor) -> Tensor:
        if self._in_place:
            return state.clone()
        self._passes[-1].versions.append((seen, state, state._version))
        return state

    def _watch(self, stack: Stack, block: Block) -> None:
        # Without a pass that goes on, the model is called in parts, or a block is computed once more in the backward pass.
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self._passes:
                now = self._passes[-1]
                run = now.runs.number(block)
                now.open.setdefault(block.path, []).append(self._enter(stack, block, run, args, kwargs))

        def after(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            entered = self._passes[-1].open.get(block.path) if self._passes else None
            seen = entered.pop() if entered else None
            if seen is not None:
                self._leave(seen, output)

        self._hooks.before(block.module, before)
        self._hooks.after(block.module, after)

    def _enter(self, stack: Stack, block: Block, run: int, args: tuple, kwargs: dict) -> Transition | None:
        if not (block.module.training and torch.is_grad_enabled()):
            return None
        x = first_state(args, kwargs)
        if x is None:
            return self._refuse(stack, block, None)
        seen = Transition(stack, stack.layer(block, run), x, run)
        seen.x = self._kept(seen, x)
        _act(x, seen, "at_x")
        return seen

    def _leave(self, seen: Transition, output: object) -> None:
        y = output_state(output, seen.x)
        if y is None:
            self._refuse(seen.stack, seen.block, seen.x)
            return
        seen.y = self._kept(seen, y)
        _act(y, seen, "at_y")
        self._passes[-1].seen.append(seen)

    def _refuse(self, stack: Stack, block: Block, x: Tensor | None) -> None:
        error = not_residual(block.path, block.module, x)
        if self.refuse is None:
            raise error
        self.refuse(stack, block, error)


def _act(state: Tensor, seen: Transition, name: str) -> None:
    """Let the rule ``name`` of ``seen`` change the gradient at ``state``."""
    if not state.requires_grad:
        return
    leaf = state.is_leaf  # asked here: a hook that holds its own state would keep the graph alive

    def rule(gradient: Tensor) -> Tensor | None:
        if leaf:  # a weight that enters the block as it is: its hooks do not go with the graph
            handle.remove()
        act = getattr(seen, name)
        return act and act(gradient)

    handle = state.register_hook(rule)
