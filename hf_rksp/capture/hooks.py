"""See every residual-stream transition of a forward pass, and leave the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.errors import CaptureError

#: Called as ``sink(stack, block, x, y)`` with the states before and after the block, shape ``(batch, tokens, d)``.
Sink = Callable[[Stack, Block, Tensor, Tensor], None]


@contextlib.contextmanager
def capture_transitions(stacks: Sequence[Stack], sink: Sink) -> Iterator[None]:
    """While the context is open, hand the input and the output of every block of ``stacks`` to ``sink``.

    The hooks sit on the blocks themselves: the last entry of ``hidden_states`` in transformers is past the final norm.
    They are outside gradient checkpointing, so each block is seen once, and see what the block sees under PEFT and
    ``device_map``. Functions made by ``torch.compile`` run eagerly meanwhile, because hooks that are added after
    compilation never fire. All hooks are gone afterwards, also after an exception.

    Raises:
        CaptureError: (from the forward pass) a block takes no hidden state, or returns one of another shape.
    """
    handles = []
    try:
        for stack in stacks:
            for block in stack.blocks:
                before, after = _hooks(stack, block, sink)
                handles.append(block.module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(block.module.register_forward_hook(after, with_kwargs=True))
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every training flag and the random state are as before."""
    training = [(module, module.training) for module in model.modules()]
    try:
        with forked_random_state(model), torch.no_grad():
            # Not model.eval(): a module may override it, and merge adapters there for instance.
            for module, _ in training:
                module.training = False
            yield
    finally:
        for module, flag in training:
            module.training = flag


def forked_random_state(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Torch's random state, on the processor and on the devices of ``model``, is put back afterwards."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    return torch.random.fork_rng(devices=devices)


def first_state(args: tuple, kwargs: dict) -> Tensor | None:
    """The hidden state among the inputs of a block: ``hidden_states`` by name, else the first floating tensor."""
    named = kwargs.get("hidden_states")
    for value in (named, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return value
    return None


def output_state(output: object, x: Tensor) -> Tensor | None:
    """The hidden state among the outputs of a block: the first tensor; ``None`` if it has not the shape of ``x``."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) and output.shape == x.shape else None


def model_inputs(args: tuple, kwargs: dict) -> Mapping[str, Any]:
    """What a model was called with, as a mapping: its keywords, or the mapping among its arguments."""
    return kwargs if kwargs else next((arg for arg in args if isinstance(arg, Mapping)), {})


def not_residual(block: Block, x: Tensor | None) -> CaptureError:
    """The error for a module that took no hidden state, or returned none of the shape of ``x``."""
    seen = "no hidden state" if x is None else f"a state of shape {tuple(x.shape)} but returned none"
    return CaptureError(
        f"block {block.path} ({type(block.module).__name__}) took {seen}: it is not a residual block. Name the list "
        "of residual blocks with blocks='path.to.list' (--blocks on the command line)"
    )


def _hooks(stack: Stack, block: Block, sink: Sink) -> tuple[Callable[..., None], Callable[..., None]]:
    """A pre-hook that keeps a copy of the input (some blocks add to it in place) and the hook that uses it."""
    kept: list[Tensor | None] = [None]

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = first_state(args, kwargs)
        kept[0] = None if x is None else x.detach().clone()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        x, kept[0] = kept[0], None
        y = None if x is None else output_state(output, x)
        if x is None or y is None:
            raise not_residual(block, x)
        sink(stack, block, x.to(y.device), y.detach())  # a block of a device_map takes states from the device before

    return before, after
