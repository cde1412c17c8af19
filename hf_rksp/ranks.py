"""The processes of a run; without ``torch.distributed`` a process is alone, and nothing is sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def agreeing(ranks: Ranks) -> Iterator[None]:
    """Work of one process, without collectives, after which all go on or all raise. Every process has to enter it.

    A process that raised alone would leave the others waiting in their next collective.

    Raises:
        Exception: of this process, or else `RuntimeError` with the message of the first process that failed.
    """
    if ranks.world == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    messages = ranks.gather(None if own is None else f"{type(own).__name__}: {own}")
    if own is not None:
        try:
            raise own
        finally:
            own = None  # an exception and its own frame would keep each other, and tensors, until garbage is collected
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"process {rank}: {message}")


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
