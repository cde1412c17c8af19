"""Weights that FSDP2 spreads over processes: the part that this one has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is spread over processes by FSDP2 or by tensor parallelism."""
    return isinstance(tensor, DTensor)


def is_flattened(weights: Iterable[Tensor]) -> bool:
    """Whether FSDP1 has made flat parts of ``weights``: what is left of a weight here has no shape of its own."""
    return any(getattr(weight, "_fsdp_flattened", False) or hasattr(weight, "_is_flat_param") for weight in weights)


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this process has; all of a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, whole: Tensor) -> Tensor:
    """``part``, the numbers of this process, as a tensor that is spread as ``whole`` is."""
    part = part.view(local(whole).shape)
    if not isinstance(whole, DTensor):
        return part
    return DTensor.from_local(part, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride())


def to_vector(
    values: Mapping[str, Tensor], weights: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """One vector, shape ``(n,)``, of the entries of ``values`` that this process has, in the order of ``weights``.

    A name that ``values`` lacks is zero. The device is that of the first weight. ``out`` is overwritten and returned.
    """
    sizes = [local(weight).numel() for weight in weights.values()]
    if out is None:
        out = torch.empty(sum(sizes), dtype=dtype, device=local(next(iter(weights.values()))).device)
    for name, part in zip(weights, out.split(sizes), strict=True):
        if name in values:
            part.copy_(local(values[name]).detach().reshape(-1))
        else:
            part.zero_()
    return out


def from_vector(vector: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_vector`: by name, in the dtypes of ``weights``, spread as those are."""
    parts = vector.split([local(weight).numel() for weight in weights.values()])
    return {name: like(part.to(w.dtype), w) for (name, w), part in zip(weights.items(), parts, strict=True)}


def full_sum(values: Tensor) -> Tensor:
    """Sum of all entries in float64, of all processes that ``values`` are spread over."""
    total = values.sum(dtype=torch.float64)
    return total.full_tensor() if isinstance(total, DTensor) else total


def copies(weights: Iterable[Tensor]) -> int:
    """How many processes have the same entry of ``weights``, which are spread alike."""
    first = next(weight for weight in weights if isinstance(weight, DTensor))
    number = 1
    for size, placement in zip(first.device_mesh.shape, first.placements, strict=True):
        number *= size if isinstance(placement, Replicate) else 1
    return number
