"""The numbers of tokens that there can be in front of a block, from the padding that was put into a batch."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from support.inputs import Feed, run
from support.states import inputs_of


@dataclass(frozen=True)
class Front:
    """The states in front of the blocks of one stack, for one batch.

    Attributes:
        model, batch: that were run.
        padded: name of an argument -> its mask of shape ``(sequences, places)``.
        paths: of the blocks.
        states: what enters each of them.
        at: number of the block that is looked at. width: of its states.
    """

    model: nn.Module
    batch: Mapping[str, Any]
    padded: Mapping[str, Tensor]
    paths: list[str]
    states: list[Tensor]
    at: int = 0
    width: int = 0

    @classmethod
    def of(cls, model: nn.Module, batch: Mapping[str, Any], padded: Mapping[str, Tensor], paths: list[str]) -> Front:
        """Run the model on the batch."""
        return cls(model, batch, padded, paths, inputs_of(model, paths, batch)[0])

    @property
    def state(self) -> Tensor:
        """What enters the block that is looked at."""
        return self.states[self.at]

    @property
    def places(self) -> int:
        """The number of its states."""
        return self.state.numel() // self.width

    def moved_by(self, changes: Mapping[str, Any]) -> Tensor | None:
        """Which positions other entries of the batch move; ``None`` if the model makes other positions of them."""
        try:
            others, _ = inputs_of(self.model, self.paths, {**self.batch, **changes})
        except Exception:  # other ids may ask for other places of an image
            return None
        if len(others) != len(self.states) or others[self.at].shape != self.state.shape:
            return None
        return (others[self.at] != self.state).reshape(-1, self.width).any(-1)


def compare_tokens(
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
        front = Front.of(model, batch, padded, paths)
        seen = front.states
        known: dict[Any, set[int]] = {}
        lead = tuple(seen[0].shape[:-1])
        own[lead] = own.get(lead, 0) + int((seen[0] != 0).any(-1).sum())
        for i, layer in enumerate(layers):
            at = i if len(seen) == len(layers) else 0
            key = seen[at].shape
            if key not in known:  # layers of one shape see the same positions
                known[key] = _counts(replace(front, at=at, width=layer.dim))
            allowed[i] = {one + other for one in allowed.get(i, {0}) for other in known[key]}
    if not any(_sees(front, name) for name in front.padded):
        for lead, count in own.items():
            allowed = {i: counts | {filled.setdefault(lead, count)} for i, counts in allowed.items()}
    row.setdefault("truth", {})[stack] = sorted(set().union(*allowed.values()))
    for i, layer in enumerate(layers):
        if layer.tokens not in allowed[i] | {count - own_states for count in allowed[i]}:
            return (
                f"{layer.path} counts {layer.tokens} tokens where there are {' or '.join(map(str, sorted(allowed[i])))}"
            )
    return None


def _counts(front: Front) -> set[int]:
    """The numbers of real positions that a batch may have in front of the block that is looked at."""
    allowed = _with_padding(front) | _attended(front)
    own = _unmoved(front)
    return allowed | {count - own for count in allowed if count > own}


def _attended(front: Front) -> set[int]:
    """The positions that any other attends to, by the mask that the first block is called with."""
    found: set[int] = set()

    def look(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and not found:
            seen = mask if mask.dtype == torch.bool else mask > -1000
            found.add(int(seen.any(1).any(1).sum()))

    handle = front.model.get_submodule(front.paths[0]).register_forward_pre_hook(look, with_kwargs=True)
    try:
        torch.manual_seed(0)
        run(front.model, front.batch)
    finally:
        handle.remove()
    return found


def _with_padding(front: Front) -> set[int]:
    state, padded, places = front.state, front.padded, front.places
    ids = front.batch.get("input_ids")
    if isinstance(ids, Tensor) and "input_ids" not in padded and tuple(ids.shape) == tuple(state.shape[:-1]):
        return {places}  # a text without padding
    sees = [name for name in padded if _sees(front, name)]
    if not sees:  # nothing is padding here, or the model itself blanks it in front of the blocks
        found = {places}
        for name in padded:
            if _text(name):
                found |= set() if _mixed(front.batch) else _pooled(padded[name], state)
            else:
                found |= _reduced(front, name)
                found |= _pooled(padded[name], state)  # the model blanks frames itself, at one of their edges
                found.add(int((state.reshape(-1, front.width) != 0).any(-1).sum()))
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
            allowed |= _reduced(front, name)
    return allowed


def _unmoved(front: Front) -> int:
    """Positions in front of the block that no input moves: learnt tokens, which may be counted or left out."""
    everywhere = {
        name: _moved(value, torch.ones(value.shape[:2], dtype=torch.bool))
        for name, value in front.batch.items()
        if isinstance(value, Tensor) and value.ndim >= 2 and _content(name)
    }
    moved = front.moved_by(everywhere)
    return 0 if moved is None else int((~moved).sum())


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


def _sees(front: Front, name: str) -> bool:
    """Whether the places masked in ``name`` are positions of the stack: they have its length, or move its states."""
    mask, first = front.padded[name], front.states[0]
    if first.shape[:2] == mask.shape or (_text(name) and mask.shape[1] in first.shape[:2]):
        return True
    moved = replace(front, at=0, width=first.shape[-1]).moved_by({name: _moved(front.batch[name], mask == 0)})
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


def _reduced(front: Front, name: str) -> set[int]:
    """Behind convolutions: positions that a real sample moves, and what the model's own reducers say."""
    mask = front.padded[name]
    # Several times: one change may leave a state as it is by chance, behind a ReLU.
    moved = [front.moved_by({name: _moved(front.batch[name], mask != 0, seed)}) for seed in (7, 8, 9)]
    known = [one for one in moved if one is not None]
    allowed = {int(torch.stack(known).any(0).sum())} if known else set()
    if _text(name):
        return allowed
    for module in front.model.modules():
        for function in filter(_REDUCER.match, dir(module)):
            with contextlib.suppress(Exception):  # of another module, or with arguments of its own
                found = [getattr(module, function)(length) for length in mask.sum(-1)]
                found = [item[0] if isinstance(item, tuple) else item for item in found]
                allowed.add(sum(int(item) for item in found))
    return allowed


_REDUCER = re.compile("_get_.*(output|subsampl).*length", re.IGNORECASE)
