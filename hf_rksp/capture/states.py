"""What of the call of a block is the hidden state, and which of its tokens are attended to."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.contents import attended


def first_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden state among the inputs of a block: ``hidden_states`` by name, else the first floating tensor."""
    named = kwargs.get("hidden_states")
    for value in (named, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return value
    return None


def raw_output(output: object) -> Tensor | None:
    """The first tensor that a block returned."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def output_state(output: object, x: Tensor) -> Tensor | None:
    """The hidden state among the outputs of a block: the first tensor; ``None`` if it has not the shape of ``x``."""
    found = raw_output(output)
    return found if found is not None and found.shape == x.shape else None


def with_state(output: object, state: Tensor) -> object:
    """``output`` of a block with ``state`` in the place of the tensor that `raw_output` finds."""
    if isinstance(output, dict):
        first = next(iter(output))
        changed = copy.copy(output)
        changed[first] = with_state(output[first], state)
        return changed
    if isinstance(output, (tuple, list)):
        rest = [with_state(output[0], state) if isinstance(output[0], (tuple, list)) else state, *output[1:]]
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
    return state


def side_streams(args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> list[tuple[int, ...]]:
    """Shapes of further states that a block takes and returns beside `first_state`: entities beside words, images beside texts."""
    x = first_state(args, kwargs)
    if x is None:
        return []
    taken = [
        value
        for value in (*args, *kwargs.values())
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == x.ndim and value is not x
    ]
    returned = list(_tensors(output))[1:]
    return [
        tuple(value.shape)
        for value in taken
        if value.shape[-1] == x.shape[-1] and any(o.shape == value.shape and o is not value for o in returned)
    ]


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def own_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], lead: tuple[int, ...]) -> Tensor | None:
    """Which of the states of shape ``lead`` are attended to, by the attention mask that a block is called with.

    ``None`` if the block is given none that can be read.
    """
    given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) if args else {}
    given |= kwargs
    value = given.get("attention_mask")
    if value is None:  # under another name, a mask with a truth value for each state
        values = (value for name, value in given.items() if name.endswith("mask") and isinstance(value, Tensor))
        value = next((mask for mask in values if mask.dtype == torch.bool and mask.shape == lead), None)
    if not isinstance(value, Tensor) or len(lead) != 2:
        return None
    if value.ndim == 4 and value.shape[0] in (1, lead[0]) and value.shape[3] == lead[1]:
        return attended(value).expand(lead)
    return value != 0 if tuple(value.shape) == tuple(lead) and not value.is_floating_point() else None
