"""What a profile is held to: the model's own hidden states, and the number of tokens that there are."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from support.inputs import Feed, run


def compare(row: dict[str, Any], model: nn.Module, feed: Feed, profile: Any) -> str | None:
    """The first thing in which the profile is wrong; what was seen goes into ``row``."""
    stacks: dict[str, list[Any]] = {}
    for layer in profile.layers:
        stacks.setdefault(layer.stack, []).append(layer)
    row["tokens"] = {stack: sorted({layer.tokens for layer in layers}) for stack, layers in stacks.items()}
    row["states"] = {}
    faults = []
    filled: dict[tuple[int, ...], int] = {}
    for stack, layers in stacks.items():
        paths = [_path(model, layer.path) for layer in layers]
        own = _own(profile, feed, stack)
        fault = _states(row, model, feed, stack, paths) or _tokens(row, model, feed, stack, layers, paths, filled, own)
        if fault:
            faults.append(fault)
    return faults[0] if faults else None


def _own(profile: Any, feed: Feed, stack: str) -> int:
    """The states of a stack that the profile names as the model's own, in all batches."""
    notes = " ".join(profile.setup.get("left_out", ()))
    found = re.search(rf"(\d+) states per sequence of {re.escape(stack)} are the model's own", notes)
    return int(found[1]) * feed.sequences * len(feed.batches) if found else 0


# --- states ---


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


def _states(row: dict[str, Any], model: nn.Module, feed: Feed, stack: str, paths: list[str]) -> str | None:
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


# --- tokens ---


def _tokens(
    row: dict[str, Any],
    model: nn.Module,
    feed: Feed,
    stack: str,
    layers: list[Any],
    paths: list[str],
    filled: dict[tuple[int, ...], int],
    own_states: int,
) -> str | None:
    """Whether the count of each layer is one that there can be.

    ``filled`` has, by their shape, the states in front of the stacks before this one that are not zero, in all batches: images
    may be padded with zeros up to a size, and what lies between two stacks may add to these. ``own_states`` are the model's own
    in all batches, which the profile says that it leaves out.
    """
    own: dict[tuple[int, ...], int] = {}
    allowed: dict[int, set[int]] = {}
    for batch, padded in zip(feed.batches, feed.padded, strict=True):
        seen, _ = inputs_of(model, paths, batch)
        known: dict[Any, set[int]] = {}
        lead = tuple(seen[0].shape[:-1])
        own[lead] = own.get(lead, 0) + int((seen[0] != 0).any(-1).sum())
        for i, layer in enumerate(layers):
            at = i if len(seen) == len(layers) else 0
            key = seen[at].shape
            if key not in known:  # layers of one shape see the same positions
                known[key] = _counts(model, batch, padded, paths, seen, at, layer.dim)
            allowed[i] = {one + other for one in allowed.get(i, {0}) for other in known[key]}
    if not any(_sees(model, batch, name, padded[name], paths, seen) for name in padded):
        for lead, count in own.items():
            allowed = {i: counts | {filled.setdefault(lead, count)} for i, counts in allowed.items()}
    row.setdefault("truth", {})[stack] = sorted(set().union(*allowed.values()))
    for i, layer in enumerate(layers):
        if layer.tokens not in allowed[i] | {count - own_states for count in allowed[i]}:
            return (
                f"{layer.path} counts {layer.tokens} tokens where there are {' or '.join(map(str, sorted(allowed[i])))}"
            )
    return None


def _counts(
    model: nn.Module,
    batch: Mapping[str, Any],
    padded: Mapping[str, Tensor],
    paths: list[str],
    states: list[Tensor],
    at: int,
    width: int,
) -> set[int]:
    """The numbers of real positions that a batch may have in front of the block that runs as number ``at``."""
    allowed = _with_padding(model, batch, padded, paths, states, at, width) | _attended(model, batch, paths)
    own = _unmoved(model, batch, paths, states, at, width)
    return allowed | {count - own for count in allowed if count > own}


def _attended(model: nn.Module, batch: Mapping[str, Any], paths: list[str]) -> set[int]:
    """The positions that any other attends to, by the mask that the first block is called with."""
    found: set[int] = set()

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and not found:
            seen = mask if mask.dtype == torch.bool else mask > -1000
            found.add(int(seen.any(1).any(1).sum()))

    handle = model.get_submodule(paths[0]).register_forward_pre_hook(look, with_kwargs=True)
    try:
        torch.manual_seed(0)
        run(model, batch)
    finally:
        handle.remove()
    return found


def _with_padding(
    model: nn.Module,
    batch: Mapping[str, Any],
    padded: Mapping[str, Tensor],
    paths: list[str],
    states: list[Tensor],
    at: int,
    width: int,
) -> set[int]:
    state = states[at]
    places = state.numel() // width
    ids = batch.get("input_ids")
    if isinstance(ids, Tensor) and "input_ids" not in padded and tuple(ids.shape) == tuple(state.shape[:-1]):
        return {places}  # a text without padding
    sees = [name for name in padded if _sees(model, batch, name, padded[name], paths, states)]
    if not sees:  # nothing is padding here, or the model itself blanks it in front of the blocks
        found = {places}
        for name in padded:
            if _text(name):
                found |= set() if _mixed(batch) else _pooled(padded[name], state)
            else:
                found |= _reduced(model, batch, name, padded[name], paths, states, at, width)
                found |= _pooled(padded[name], state)  # the model blanks frames itself, at one of their edges
                found.add(int((state.reshape(-1, width) != 0).any(-1).sum()))
        return found
    allowed = set()
    for name in sees:
        mask = padded[name]
        if mask.shape[1] in state.shape[:2] or places >= mask.numel():
            allowed.add(places - int((mask == 0).sum()))  # a position for each place of the mask
            if state.shape[1] == mask.shape[1] + 1 and _text(name):
                allowed |= set(
                    range(int(mask.sum()), int(mask.sum()) + len(mask) + 1)
                )  # one more per text, real or not
            if places > mask.numel() and _text(name):
                allowed.add(int(mask.sum()))  # the rest was added inside as padding
                if places % mask.numel() == 0:
                    allowed.add(int(mask.sum()) * (places // mask.numel()))  # several positions for each place
        if mask.shape[1] not in state.shape[:2] and places < mask.numel():
            allowed |= _pooled(mask, state)
            allowed |= _reduced(model, batch, name, mask, paths, states, at, width)
    return allowed


def _unmoved(
    model: nn.Module, batch: Mapping[str, Any], paths: list[str], states: list[Tensor], at: int, width: int
) -> int:
    """Positions in front of the first block that no input moves: learnt tokens, which may be counted or left out."""
    everywhere = {
        name: _moved(value, torch.ones(value.shape[:2], dtype=torch.bool))
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.ndim >= 2 and _content(name)
    }
    moved = _changed(model, paths, dict(batch) | everywhere, states, at, width)
    return 0 if moved is None else int((~moved).sum())


def _changed(
    model: nn.Module, paths: list[str], batch: Mapping[str, Any], states: list[Tensor], at: int, width: int
) -> Tensor | None:
    """Which positions another batch moves; ``None`` where the model does not take it, or makes other positions of it."""
    try:
        others, _ = inputs_of(model, paths, batch)
    except Exception:  # other ids may ask for other places of an image
        return None
    if len(others) != len(states) or others[at].shape != states[at].shape:
        return None
    return (others[at] != states[at]).reshape(-1, width).any(-1)


def _content(name: str) -> bool:
    return not any(word in name for word in ("mask", "type", "position", "grid", "size", "bbox", "length", "label"))


def _text(name: str) -> bool:
    return name.endswith(("ids", "embeds"))


def _mixed(batch: Mapping[str, Any]) -> bool:
    """Whether something beside texts goes in."""
    return any(
        isinstance(value, Tensor) and value.is_floating_point() and _content(name) for name, value in batch.items()
    )


def _pooled(mask: Tensor, state: Tensor) -> set[int]:
    """Where several places of a text make one position: from those that are all real to those with a real one.

    A model may keep one in front of them, and pool in several steps: both move the edge by a position.
    """
    if state.ndim != 3 or state.shape[0] != mask.shape[0] or not 1 < state.shape[1] <= mask.shape[1] // 2 + 1:
        return set()
    length, size = state.shape[1], -(-mask.shape[1] // state.shape[1])
    cells = torch.nn.functional.pad(mask, (0, length * size - mask.shape[1])).view(-1, length, size)
    shifted = torch.cat([torch.ones_like(cells[:, :1, 0]), cells.amax(-1)[:, :-1]], 1)
    return set(range(int(cells.amin(-1).sum()), int(shifted.sum()) + 1))


def _sees(
    model: nn.Module, batch: Mapping[str, Any], name: str, mask: Tensor, paths: list[str], states: list[Tensor]
) -> bool:
    """Whether the places masked in ``name`` are positions of the stack: they have its length, or move its states."""
    if states[0].shape[:2] == mask.shape or (_text(name) and mask.shape[1] in states[0].shape[:2]):
        return True
    width = states[0].shape[-1]
    moved = _changed(model, paths, dict(batch) | {name: _moved(batch[name], mask == 0)}, states, 0, width)
    return moved is not None and bool(moved.any())


def _moved(values: Tensor, where: Tensor, seed: int = 7) -> Tensor:
    """``values`` with something else at the places ``where``."""
    generator = torch.Generator().manual_seed(seed)
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
    model: nn.Module,
    batch: Mapping[str, Any],
    name: str,
    mask: Tensor,
    paths: list[str],
    states: list[Tensor],
    at: int,
    width: int,
) -> set[int]:
    """Behind convolutions: positions that a real sample moves, and what the model's own reducers say."""
    # Several times: one change may leave a state as it is by chance, behind a ReLU.
    changes = [dict(batch) | {name: _moved(batch[name], mask != 0, seed)} for seed in (7, 8, 9)]
    moved = [_changed(model, paths, changed, states, at, width) for changed in changes]
    known = [one for one in moved if one is not None]
    allowed = {int(torch.stack(known).any(0).sum())} if known else set()
    if _text(name):
        return allowed
    for module in model.modules():
        for function in filter(_REDUCER.match, dir(module)):
            with contextlib.suppress(Exception):  # of another module, or with arguments of its own
                found = [getattr(module, function)(length) for length in mask.sum(-1)]
                found = [item[0] if isinstance(item, tuple) else item for item in found]
                allowed.add(sum(int(item) for item in found))
    return allowed


_REDUCER = re.compile("_get_.*(output|subsampl).*length", re.IGNORECASE)


def _path(model: nn.Module, path: str) -> str:
    """``path`` without what is not part of the module's own: the number of a run."""
    known = dict(model.named_modules())
    while path and path not in known:
        path = path[:-1]
    return path


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the forward of ``model`` names the argument."""
    return name in inspect.signature(model.forward).parameters
