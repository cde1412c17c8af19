"""The one way from a device to the host: each transfer waits for the device once, and is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_rksp.flat import joined

#: How often a run has waited for a device here.
moves = 0


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` in main memory, by one transfer if they are of one dtype and device; those that are there are not copied."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        _count()
        return tensors
    return tuple(joined(tensors, _moved))


def _moved(flat: Tensor) -> Tensor:
    _count()
    return flat.cpu()


def _count() -> None:
    global moves
    moves += 1


class Later:
    """A tensor on its way to main memory: the copy begins now, and whoever asks for it a step later does not wait.

    Args:
        tensor: which is not changed afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._tensor = tensor

    def get(self) -> Tensor:
        """The tensor in main memory."""
        if self._done is not None:
            self._done.synchronize()
            return self._tensor
        return to_host(self._tensor)[0]
