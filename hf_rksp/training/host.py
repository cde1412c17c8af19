"""The one way from a device to the host: each call waits for the device once, and is counted."""

from __future__ import annotations

import torch
from torch import Tensor

#: How often a run has waited for a device here.
moves = 0


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` of one dtype and device in main memory, by one transfer; those that are there are not copied."""
    global moves
    moves += 1
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))
