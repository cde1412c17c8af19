"""The processes of a run; without ``torch.distributed`` a process is alone, and nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed
from torch import Tensor

from hf_rksp.flat import joined


def distributed() -> bool:
    """Whether this process was started with others that it can reach."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(frozen=True)
class Ranks:
    """The number of this process (``rank``) and of all (``world``)."""

    rank: int = 0
    world: int = 1

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order; every process has to call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


def current_ranks() -> Ranks:
    """Those of ``torch.distributed``; without it a process is number 0 of 1."""
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed() else Ranks()


def world_size() -> int:
    """Number of processes that take part; 1 without ``torch.distributed``."""
    return current_ranks().world


def from_main(value: Any) -> Any:
    """``value`` of the main process, on every one. Every process has to call it."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """``tensor`` added up over all processes. Every process has to call it."""
    return sums_over_ranks([tensor])[0]


def sums_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each of ``tensors`` added up over all processes, in as few collectives as `joined` makes. Every process has to call it."""
    return list(tensors) if world_size() == 1 else joined(tensors, _all_reduced)


def _all_reduced(total: Tensor) -> Tensor:
    torch.distributed.all_reduce(total)
    return total
