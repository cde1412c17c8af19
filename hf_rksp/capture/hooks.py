"""See every residual-stream transition of a forward pass, and leave the model unchanged."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from hf_rksp.capture.attach import Attached
from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.capture.calling import eager
from hf_rksp.capture.refusals import not_residual
from hf_rksp.capture.states import first_state, output_state
from hf_rksp.errors import CaptureError

#: Called as ``sink(stack, block, x, y)`` with the states before and after the block, shape ``(batch, tokens, d)``.
Sink = Callable[[Stack, Block, Tensor, Tensor], None]


#: Called with a block that could not be read, and why.
Refuse = Callable[[Stack, Block, CaptureError], None]


class Runs:
    """Numbers the runs of each block in the forward pass that goes on."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def next_pass(self) -> None:
        """Say that a forward pass of the model begins."""
        self._count.clear()

    def number(self, block: Block) -> int:
        """Which run of ``block`` this is; the next call is about the next one."""
        self._count[block.path] += 1
        return self._count[block.path] - 1


@contextlib.contextmanager
def capture_transitions(stacks: Sequence[Stack], sink: Sink, refuse: Refuse | None = None) -> Iterator[Runs]:
    """While the context is open, hand the input and the output of every block of ``stacks`` to ``sink``.

    The hooks sit on the blocks themselves: the last entry of ``hidden_states`` in transformers is past the final norm.
    They are outside gradient checkpointing, so each block is seen once, and see what the block sees under PEFT and
    ``device_map``. Functions made by ``torch.compile`` run eagerly meanwhile, because hooks that are added after
    compilation never fire. All hooks are gone afterwards, also after an exception, and copies that are made of the model
    meanwhile have none.

    A module that runs several times in a forward pass is one layer per run (`Stack.layer`).
    Say ``next_pass()`` on what the context gives where a pass begins, else they count on.

    Args:
        stacks: from `hf_rksp.capture.find_stacks`.
        sink: see `Sink`.
        refuse: called instead of the error below.

    Raises:
        CaptureError: (from the forward pass) a block takes no hidden state, or returns one of another shape.
    """
    hooks, runs = Attached(), Runs()
    try:
        for stack in stacks:
            for block in stack.blocks:
                before, after = _hooks(stack, block, sink, refuse, runs)
                hooks.before(block.module, before)
                hooks.after(block.module, after)
        with eager():
            yield runs
    finally:
        hooks.remove()


def _hooks(
    stack: Stack, block: Block, sink: Sink, refuse: Refuse | None, runs: Runs
) -> tuple[Callable[..., None], Callable[..., None]]:
    """A pre-hook that keeps a copy of the input (some blocks add to it in place) and the hook that uses it."""
    kept: list[tuple[Block, Tensor | None]] = []  # several only where a block runs inside itself

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, run = first_state(args, kwargs), runs.number(block)
        kept.append((stack.layer(block, run), None if x is None else x.detach().clone()))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if not kept:  # opened while the block was running
            return
        now, x = kept.pop()
        y = None if x is None else output_state(output, x)
        if x is None or y is None:
            error = not_residual(block.path, block.module, x)
            if refuse is None:
                raise error
            refuse(stack, now, error)
            return
        sink(stack, now, x.to(y.device), y.detach())  # a block of a device_map takes states from the device before

    return before, after
