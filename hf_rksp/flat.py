"""Act on many tensors as on one: a collective or a transfer costs more by its number than by its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

#: Bytes that are joined at most: the joined tensor is a copy.
_BUCKET = 2**28


def joined(tensors: Sequence[Tensor], act: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """``act`` applied to ``tensors``, once per run of one dtype and device of at most `_BUCKET` bytes.

    Args:
        tensors: of any shapes.
        act: from a tensor of shape ``(n,)`` to one of the same shape.

    Returns:
        What became of each of ``tensors``, in its shape.
    """
    found: list[Tensor] = []
    filled, buckets = 0, 0

    def bucket(tensor: Tensor) -> tuple[torch.dtype, torch.device, int]:
        nonlocal filled, buckets
        if filled and filled + tensor.nbytes > _BUCKET:
            filled, buckets = 0, buckets + 1
        filled += tensor.nbytes
        return tensor.dtype, tensor.device, buckets

    for _, group in groupby(tensors, bucket):
        parts = list(group)
        flat = act(torch.cat([part.detach().reshape(-1) for part in parts]))
        sizes = [part.numel() for part in parts]
        found += [values.view(part.shape) for values, part in zip(flat.split(sizes), parts, strict=True)]
    return found
