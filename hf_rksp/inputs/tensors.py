"""The tensors of a model by their places: parameters, buffers, and those that a module keeps as plain attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: The place of a tensor: a module, and the name of the tensor there.
Slot = tuple[nn.Module, str]


def registered(modules: Iterable[nn.Module]) -> Iterator[tuple[Slot, Tensor]]:
    """The modules' own parameters and buffers."""
    for module in modules:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield (module, name), tensor


def loose(model: nn.Module) -> dict[Slot, Tensor]:
    """Tensors on the meta device that are plain attributes: no method of `nn.Module` moves them."""
    return {
        (module, name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    }


def shared(model: nn.Module) -> list[list[Slot]]:
    """Places that hold one and the same tensor, group by group."""
    places: dict[int, list[Slot]] = {}
    for slot, tensor in registered(model.modules()):
        places.setdefault(id(tensor), []).append(slot)
    return [group for group in places.values() if len(group) > 1]


def get(slot: Slot) -> Tensor:
    """The tensor at a place; KeyError where there is none."""
    module, name = slot
    for store in (module._parameters, module._buffers, vars(module)):
        if isinstance(value := store.get(name), Tensor):
            return value
    raise KeyError(name)


def put(slot: Slot, tensor: Tensor) -> None:
    """The very object ``tensor`` at a place."""
    module, name = slot
    store: dict[str, Any] = next((s for s in (module._parameters, module._buffers) if name in s), vars(module))
    store[name] = tensor


def find(model: nn.Module, path: str, name: str) -> Tensor | None:
    """The tensor of another model of the same kind; ``None`` if it is missing or on the meta device."""
    try:
        value = get((model.get_submodule(path), name)).detach()
    except (AttributeError, KeyError):
        return None
    return None if value.is_meta else value


def bare(tensor: Tensor) -> Tensor:
    """The same on the meta device."""
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def can_be_nan(tensor: Tensor) -> bool:
    """Whether its dtype has a NaN."""
    return tensor.is_floating_point() or tensor.is_complex()


def untouched(tensor: Tensor) -> bool:
    """Whether a number is NaN, or the large integer that `skeletons` leaves where nothing was written."""
    if can_be_nan(tensor):
        return bool(torch.isnan(tensor if tensor.element_size() > 1 else tensor.float()).any())
    return tensor.element_size() >= 4 and bool((tensor == torch.iinfo(tensor.dtype).max).any())


def cast(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """The modules' own numbers, not those of their children."""
    for module in modules:
        module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, recurse=False)


@contextlib.contextmanager
def hidden(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Numbers of ``modules`` on the meta device, where nothing that is drawn can reach them."""
    kept = {slot: tensor for slot, tensor in registered(modules) if not tensor.is_meta}
    try:
        for slot, tensor in kept.items():
            put(slot, bare(tensor))
        yield
    finally:
        for slot, tensor in kept.items():
            put(slot, tensor)
