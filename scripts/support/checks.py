"""What a profile is held to: the model's own hidden states, and the number of tokens that there are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from inputs import Feed, run
from torch import Tensor, nn


def compare(row: dict[str, Any], model: nn.Module, feed: Feed, profile: Any) -> str | None:
    """The first thing in which the profile is wrong; what was seen goes into ``row``."""
    stacks: dict[str, list[Any]] = {}
    for layer in profile.layers:
        stacks.setdefault(layer.stack, []).append(layer)
    row["tokens"] = {stack: sorted({layer.tokens for layer in layers}) for stack, layers in stacks.items()}
    row["states"] = {}
    faults = []
    for stack, layers in stacks.items():
        paths = [_path(model, layer.path) for layer in layers]
        fault = _states(row, model, feed, stack, paths) or _tokens(row, model, feed, stack, layers, paths)
        if fault:
            faults.append(fault)
    return faults[0] if faults else None


# --- states ---


def inputs_of(model: nn.Module, paths: list[str], batch: Mapping[str, Any], **more: Any) -> tuple[list[Tensor], Any]:
    """The state that enters each of the modules at ``paths``, in the order in which they run, and the model's output."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        states = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()]
        named = kwargs.get("hidden_states")
        state = named if isinstance(named, Tensor) and not args else next(iter(states), None)
        if state is not None:
            seen.append(state.detach().clone())

    handles = [model.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True) for path in dict.fromkeys(paths)]
    try:
        torch.manual_seed(0)
        output = run(model, batch, **more)
    finally:
        for handle in handles:
            handle.remove()
    return seen, output


def _states(row: dict[str, Any], model: nn.Module, feed: Feed, stack: str, paths: list[str]) -> str | None:
    output = None
    for more in ({"output_hidden_states": True, "return_dict": True}, {"output_hidden_states": True}):
        try:
            seen, output = inputs_of(model, paths, feed.batches[0], **more)
            break
        except TypeError:
            continue
    if output is None:
        row["states"][stack] = "not returned"
        return None
    found = "not returned"
    for states in _tuples(output):
        if len(states) < len(seen) or len(states) > len(seen) + 2:
            continue
        if all(state.shape == other.shape for state, other in zip(seen, states, strict=False)):
            start = next((i for i in range(len(states) - len(seen) + 1) if _equal(seen, states[i:])), None)
            if start is not None:
                row["states"][stack] = "equal"
                return None
            found = "other"
    row["states"][stack] = found
    return None


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


# --- tokens ---


def _tokens(
    row: dict[str, Any], model: nn.Module, feed: Feed, stack: str, layers: list[Any], paths: list[str]
) -> str | None:
    """Whether the count of each layer is one that there can be."""
    allowed = {0}
    for batch, padded in zip(feed.batches, feed.padded, strict=True):
        seen, _ = inputs_of(model, paths, batch)
        counts = _counts(model, batch, padded, paths, seen[0], layers[0].dim)
        allowed = {one + other for one in allowed for other in counts}
    row.setdefault("truth", {})[stack] = sorted(allowed)
    wrong = sorted({layer.tokens for layer in layers} - allowed)
    if wrong:
        return f"{stack} counts {wrong[0]} tokens where there are {' or '.join(map(str, sorted(allowed)))}"
    return None


def _counts(
    model: nn.Module, batch: Mapping[str, Any], padded: Mapping[str, Tensor], paths: list[str], state: Tensor, width: int
) -> set[int]:
    """The numbers of real positions that a batch may have in a stack whose first block sees ``state``."""
    allowed = _with_padding(model, batch, padded, paths, state, width)
    own = _own(model, batch, paths, state, width)
    return allowed | {count - own for count in allowed if count > own}


def _with_padding(
    model: nn.Module, batch: Mapping[str, Any], padded: Mapping[str, Tensor], paths: list[str], state: Tensor, width: int
) -> set[int]:
    places = state.numel() // width
    sees = [name for name in padded if _sees(model, batch, name, padded[name], paths, state)]
    if not sees:  # nothing is padding here, or the model itself blanks it in front of the blocks
        found = {places}
        for name in padded:
            if not _text(name):
                found |= _reduced(model, batch, name, padded[name], paths, state, width)
                found.add(int((state.reshape(-1, width) != 0).any(-1).sum()))
        return found
    allowed = set()
    for name in sees:
        mask = padded[name]
        if mask.shape[1] in state.shape[:2] or places >= mask.numel():
            allowed.add(places - int((mask == 0).sum()))  # a position for each place of the mask
            if places > mask.numel() and _text(name):
                allowed.add(int(mask.sum()))  # the rest was added inside as padding
        else:
            allowed |= _reduced(model, batch, name, mask, paths, state, width)
    return allowed


def _own(model: nn.Module, batch: Mapping[str, Any], paths: list[str], state: Tensor, width: int) -> int:
    """Positions in front of the first block that no input moves: learnt tokens, which may be counted or left out."""
    everywhere = {
        name: _moved(value, torch.ones(value.shape[:2], dtype=torch.bool))
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.ndim >= 2 and _content(name)
    }
    try:
        other, _ = inputs_of(model, paths, dict(batch) | everywhere)
    except Exception:  # other ids may ask for other places of an image
        return 0
    if other[0].shape != state.shape:
        return 0
    return int((other[0] == state).reshape(-1, width).all(-1).sum())


def _content(name: str) -> bool:
    return not any(word in name for word in ("mask", "type", "position", "grid", "size", "bbox", "length", "label"))


def _text(name: str) -> bool:
    return name.endswith(("ids", "embeds"))


def _sees(
    model: nn.Module, batch: Mapping[str, Any], name: str, mask: Tensor, paths: list[str], state: Tensor
) -> bool:
    """Whether the places masked in ``name`` are positions of the stack: they have its length, or move its states."""
    if _text(name) and mask.shape[1] in state.shape[:2]:
        return True
    other, _ = inputs_of(model, paths, dict(batch) | {name: _moved(batch[name], mask == 0)})
    return other[0].shape == state.shape and not torch.equal(other[0], state)


def _moved(values: Tensor, where: Tensor) -> Tensor:
    """``values`` with something else at the places ``where``."""
    generator = torch.Generator().manual_seed(7)
    axis = next(i for i in range(1, values.ndim) if values.shape[i] == where.shape[1])
    shape = [1] * values.ndim
    shape[0], shape[axis] = where.shape
    where = where.view(shape)
    if values.is_floating_point():
        return torch.where(where, torch.randn(values.shape, generator=generator), values)
    if values.dtype == torch.bool:
        return values
    top = int(values.max()) + 1
    return torch.where(where, (values + 1 + torch.randint(3, values.shape, generator=generator)) % top, values)


def _reduced(
    model: nn.Module, batch: Mapping[str, Any], name: str, mask: Tensor, paths: list[str], state: Tensor, width: int
) -> set[int]:
    """Behind convolutions: positions that a real sample moves, and what the model's own reducers say."""
    other, _ = inputs_of(model, paths, dict(batch) | {name: _moved(batch[name], mask != 0)})
    moved = (other[0] != state).reshape(-1, width).any(-1) if other[0].shape == state.shape else None
    allowed = set() if moved is None else {int(moved.sum())}
    for function in ("_get_feat_extract_output_lengths", "_get_feature_vector_attention_mask", "_get_output_lengths"):
        for module in model.modules():
            reducer = getattr(module, function, None)
            if reducer is not None and "vector" not in function:
                found = [reducer(length) for length in mask.sum(-1)]  # some take one number at a time
                found = [item[0] if isinstance(item, tuple) else item for item in found]
                allowed.add(int(sum(int(item) for item in found)))
                break
    return allowed


def _path(model: nn.Module, path: str) -> str:
    """``path`` without what is not part of the module's own: the number of a run."""
    known = dict(model.named_modules())
    while path and path not in known:
        path = path[:-1]
    return path


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the forward of ``model`` names the argument."""
    return name in inspect.signature(model.forward).parameters
