"""The states in front of the first block of each stack, and how a forward pass ends there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.states import first_state, output_state, own_mask, raw_output

#: Runs the model once on a batch.
Run = Callable[[Mapping[str, Any]], object]


class _Enough(BaseException):
    """Every stack has been reached: the rest of the forward pass is not needed."""


def first_states(
    run: Run,
    batch: Mapping[str, Any],
    stacks: Sequence[Stack],
    stop: bool = True,
    blocks: bool = False,
    masks: dict[str, Tensor] | None = None,
    skip: Collection[str] = (),
    behind: bool = False,
    shifted: str = "",
) -> dict[str, Tensor]:
    """The state in front of the first block of each stack, shape ``(..., d)``, by the path of the stack.

    Args:
        run: one forward pass.
        batch: what it is called with.
        stacks: that are looked at.
        stop: end the pass when all of them are reached.
        blocks: the blocks are at work; else each hands on what it is given.
        masks: takes which states are attended to, for each stack whose first block is told.
        skip: paths of stacks that are not looked at, though their blocks hand on what they are given.
        behind: look at what leaves the last block instead.
        shifted: path of a stack whose last block hands on its states plus 1.
    """
    found: dict[str, Tensor] = {}
    place = -1 if behind else 0
    firsts = {stack.blocks[place].module: stack for stack in stacks if stack.blocks and stack.path not in skip}

    def note_behind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        y = raw_output(output)
        note(module, (y,), {})

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack, x = firsts[module], first_state(args, kwargs)
        if x is not None and stack.path not in found:
            found[stack.path] = x.detach().clone()
            told = None if masks is None else own_mask(module, args, kwargs, x.shape[:-1])
            if masks is not None and told is not None:
                masks[stack.path] = told
        if stop and len(found) == len(firsts):
            raise _Enough

    if behind:
        handles = [module.register_forward_hook(note_behind, with_kwargs=True) for module in firsts]
    else:
        handles = [module.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for module in firsts]
    for module in {block.module for stack in stacks for block in stack.blocks if not blocks}:
        last = any(stack.path == shifted and stack.blocks[-1].module is module for stack in stacks)
        handles += _handing_on(module, 1.0 if last else 0.0)
    torch.manual_seed(0)  # a model that draws its own mask draws the same one in each pass
    try:
        run(batch)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _handing_on(module: nn.Module, plus: float) -> list[Any]:
    """Hooks that let a block return the state that it was given, plus a number."""
    given: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_state(args, kwargs)
        given.append(None if x is None else x.clone())  # some blocks write into it

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = given.pop()
        if x is None or output_state(output, x) is None:
            return None
        x = x + plus if plus else x
        if isinstance(output, Tensor):
            return x
        if isinstance(output, dict):
            output[next(iter(output))] = x
            return output
        return type(output)([x, *output[1:]]) if type(output) in (tuple, list) else None

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def moved_states(x: Tensor, other: Tensor) -> Tensor:
    """Which states, shape ``(...)``, differ between two passes, of shape ``(..., d)``; NaN in both is no difference."""
    return ((x != other) & ~(x.isnan() & other.isnan())).any(-1)
