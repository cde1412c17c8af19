"""The states that enter the blocks, beside the hidden states that the model itself returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from support.inputs import Feed, run


def inputs_of(model: nn.Module, paths: list[str], batch: Mapping[str, Any], **more: Any) -> tuple[list[Tensor], Any]:
    """The state that enters each of the modules at ``paths``, in the order in which they run, and the model's output."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        states = [
            value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()
        ]
        named = kwargs.get("hidden_states")
        state = named if isinstance(named, Tensor) and not args else next(iter(states), None)
        if state is not None:
            seen.append(state.detach().clone())

    handles = [
        model.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True) for path in dict.fromkeys(paths)
    ]
    try:
        torch.manual_seed(0)
        output = run(model, batch, **more)
    finally:
        for handle in handles:
            handle.remove()
    return seen, output


def compare_states(row: dict[str, Any], model: nn.Module, feed: Feed, stack: str, paths: list[str]) -> str | None:
    """Whether the blocks' states are among those that the model itself returns, where it returns states of their shape.

    A model keeps what enters each block, or what leaves it where something is added in between; of the last it keeps what is
    past the norm, so that one may be another.
    """
    for more in ({"output_hidden_states": True, "return_dict": True}, {"output_hidden_states": True}):
        left: list[Tensor] = []
        try:
            with _outputs_of(model, paths, left):
                entered, output = inputs_of(model, paths, feed.batches[0], **more)
            break
        except TypeError:
            continue
    else:
        row["states"][stack] = "not returned"
        return None
    found = "not returned"
    for states in _tuples(output):
        same = all(state.shape == other.shape for state, other in zip(entered, states, strict=False))
        if same and len(entered) <= len(states) <= len(entered) + 2:
            starts = range(len(states) - len(entered) + 1)
            kept = [entered, left[:-1] if len(left) > 1 else [], *_normed(model, stack, entered)]
            if any(own and _equal(own, states[i:]) for i in starts for own in kept):
                row["states"][stack] = "equal"
                return None
            found = "other"
    row["states"][stack] = found
    return f"the states of {stack} are not the model's own hidden_states" if found == "other" else None


def _normed(model: nn.Module, stack: str, states: list[Tensor]) -> Iterator[list[Tensor]]:
    """The states past a norm that stands beside the list of blocks: some detectors keep those."""
    owner = model.get_submodule(stack.rpartition(".")[0])
    for module in owner.children():
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == states[0].shape[-1:]:
            with torch.no_grad():
                yield [module(state) for state in states]


@contextlib.contextmanager
def _outputs_of(model: nn.Module, paths: list[str], left: list[Tensor]) -> Iterator[None]:
    """Collects in ``left`` the state that leaves each of the modules at ``paths``."""

    def look(module: nn.Module, args: object, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(first, Tensor):
            left.append(first.detach().clone())

    handles = [model.get_submodule(path).register_forward_hook(look) for path in dict.fromkeys(paths)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _equal(seen: list[Tensor], states: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(seen, states, strict=False))


def _tuples(output: Any) -> Iterator[tuple[Tensor, ...]]:
    """All tuples of tensors in an output."""
    if isinstance(output, Mapping):
        for value in output.values():
            yield from _tuples(value)
    elif isinstance(output, (tuple, list)):
        if output and all(isinstance(item, Tensor) and item.ndim >= 2 for item in output):
            yield tuple(output)
        for item in output:
            yield from _tuples(item)
