"""How blocks are called, and what of it is the state."""

from __future__ import annotations

from torch import Tensor


def first_state(args: tuple, kwargs: dict) -> Tensor | None:
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
