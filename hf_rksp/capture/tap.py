"""See the transitions of a training forward pass with their graph, and act on the gradients at their states."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_rksp.capture.attach import Attached
from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.capture.calling import eager, model_inputs, uncompiled
from hf_rksp.capture.hooks import Refuse, Runs
from hf_rksp.capture.refusals import not_residual
from hf_rksp.capture.states import first_state, output_state
from hf_rksp.errors import CaptureError

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


class Looker(Protocol):
    """Looks at the states of one training forward pass, and changes nothing."""

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """A pass over ``batch`` (the inputs of the model, by name) begins."""

    def record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """A block has run: its states before and after, shape ``(batch, tokens, d)``, without graph."""

    def refuse(self, stack: Stack, block: Block, error: CaptureError) -> None:
        """A block has run, and is no residual block."""

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """The pass is over."""


@dataclass
class _Pass:
    """What was seen of a forward pass that goes on; inside it there may be another, of a teacher or of a hook of the user's."""

    batch: Mapping[str, Any]
    #: Whether it is a pass of training; what is run beside the training has no gradients.
    trains: bool
    looked_at: bool = False
    runs: Runs = field(default_factory=Runs)
    open: dict[str, list[_Entered]] = field(default_factory=dict)
    seen: list[Transition] = field(default_factory=list)
    versions: list[tuple[Transition, Tensor, int]] = field(default_factory=list)


@dataclass
class _Entered:
    """A block that runs: which run of it, its input for those who look, and what is acted on."""

    block: Block
    x: Tensor | None
    transition: Transition | None


class TrainingTap:
    """The one set of hooks on a model that trains: for those who look at its states, and for the one who acts on their gradients.

    A forward pass counts if gradients are on, so evaluation and generation inside a training run are left alone. What is acted on
    are blocks in training mode. Hooks sit on the blocks, outside gradient checkpointing, so each block is seen once. To
    act, open the tap before the first call of a model made by ``torch.compile``: hooks that are added later never fire. To
    look, it opens by itself and lets compiled functions run eagerly for that pass. Copies that are made of the model
    meanwhile have no hooks.

    Args:
        model: the module that owns the blocks, without DDP or DeepSpeed around it.
        stacks: from `hf_rksp.capture.find_stacks`.
        finish: see `Finish`; called with no transitions if a pass of a model in training mode has shown none.
        refuse: called instead of the error below.

    Raises:
        CaptureError: (from the forward pass) a block takes no hidden state, or returns one of another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        stacks: Sequence[Stack],
        finish: Finish | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self.model = uncompiled(model)
        self.stacks, self.finish, self.refuse = stacks, finish, refuse
        self._hooks: Attached | None = None
        self._passes: list[_Pass] = []
        self._in_place = False
        self._acts = False
        self._lookers: tuple[Looker, ...] = ()
        self._eager = contextlib.ExitStack()

    def __enter__(self) -> TrainingTap:
        self._acts = True
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._acts = False
        self.look_away()
        self._close()

    def look(self, lookers: Sequence[Looker]) -> None:
        """Let ``lookers`` see the training forward pass that comes next; the hooks that this takes are gone when it ends."""
        self.look_away()
        if lookers:
            self._lookers = tuple(lookers)
            self._eager.enter_context(eager())
            self._open()

    def look_away(self) -> None:
        """Look at no pass, also not at the one that goes on."""
        self._lookers = ()
        self._eager.close()
        if not self._acts:
            self._close()

    def _open(self) -> None:
        if self._hooks is not None:
            return
        self._hooks = Attached()
        self._hooks.before(self.model, self._begin)
        for stack in self.stacks:
            for block in stack.blocks:
                self._watch(self._hooks, stack, block)
        self._hooks.after(self.model, self._end, always_call=True)

    def _close(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks, self._passes = None, []

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now = _Pass(model_inputs(module, args, kwargs), torch.is_grad_enabled())
        now.looked_at = now.trains and bool(self._lookers)
        self._passes.append(now)
        if now.looked_at:
            for looker in self._lookers:
                looker.pass_begin(now.batch)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if not self._passes:  # opened while the model was running
            return
        now = self._passes.pop()
        if now.looked_at:
            lookers = self._lookers
            self.look_away()
            for looker in lookers:
                looker.pass_end(now.batch)
        if output is None:  # it has raised
            return
        # Some blocks add to their input in place, which is the output of the block before. What it was is gone, so this
        # pass goes without; from now on copies are kept.
        for transition, state, version in now.versions:
            if state._version != version:
                transition.overwritten = self._in_place = True
        if self._acts and self.finish and (now.seen or (module.training and now.trains)):
            self.finish(now.seen, now.batch)
        for transition in now.seen:
            # The graph holds the hooks and the hooks hold this: without the states the graph can be freed.
            del transition.x, transition.y

    def _kept(self, seen: Transition, state: Tensor) -> Tensor:
        if self._in_place:
            return state.clone()
        self._passes[-1].versions.append((seen, state, state._version))
        return state

    def _watch(self, hooks: Attached, stack: Stack, block: Block) -> None:
        # Without a pass that goes on, the model is called in parts, or a block is computed once more in the backward pass.
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._passes and self._passes[-1].trains:
                now = self._passes[-1]
                run = now.runs.number(block)
                now.open.setdefault(block.path, []).append(self._enter(stack, block, run, args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            entered = self._passes[-1].open.get(block.path) if self._passes else None
            if entered:
                self._leave(stack, entered.pop(), output)

        hooks.before(block.module, before)
        hooks.after(block.module, after)

    def _enter(self, stack: Stack, block: Block, run: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Entered:
        x, now = first_state(args, kwargs), stack.layer(block, run)
        acts = self._acts and block.module.training and torch.is_grad_enabled()
        looks = self._passes[-1].looked_at
        if x is None:
            self._refuse(stack, now, None, acts, looks)
            return _Entered(now, None, None)
        seen = None
        if acts:
            seen = Transition(stack, now, x, run)
            seen.x = self._kept(seen, x)
            _act(x, seen, "at_x")
        # A copy: some blocks add to their input in place.
        return _Entered(now, x.detach().clone() if looks else None, seen)

    def _leave(self, stack: Stack, entered: _Entered, output: object) -> None:
        seen, x = entered.transition, entered.x
        state = seen.x if seen is not None else x
        if state is None:
            return
        y, looks = output_state(output, state), x is not None and self._passes[-1].looked_at
        if y is None:
            self._refuse(stack, entered.block, state, seen is not None, looks)
            return
        if looks and x is not None:
            for looker in self._lookers:
                looker.record(stack, entered.block, x.to(y.device), y.detach())
        if seen is not None:
            seen.y = self._kept(seen, y)
            _act(y, seen, "at_y")
            self._passes[-1].seen.append(seen)

    def _refuse(self, stack: Stack, block: Block, x: Tensor | None, acts: bool, looks: bool) -> None:
        error = not_residual(block.path, block.module, x)
        if looks:
            for looker in self._lookers:
                looker.refuse(stack, block, error)
        if acts:
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
        act: GradientRule | None = getattr(seen, name)
        return None if act is None else act(gradient)

    handle = state.register_hook(rule)
