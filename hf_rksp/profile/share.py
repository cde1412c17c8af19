"""A profile that several processes work on: each passes its share of the sequences, and solves its share of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from hf_rksp.errors import InputError


@dataclass(frozen=True)
class Share:
    """What part of the work this process has.

    Attributes:
        rank, world: number of this process, and of all.
        first: sequences that the processes before this one pass.
    """

    rank: int = 0
    world: int = 1
    first: int = 0

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in order; every process has to call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values


#: A process that works alone.
ALONE = Share()


def share_of(batches: Sequence[Mapping[str, Any]], shared: bool) -> Share:
    """The share of this process, from the batches that it was given.

    Raises:
        InputError: ``shared`` without `torch.distributed`, or a process has no batch. All processes raise.
    """
    if not shared:
        return ALONE
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InputError(
            "shared=True needs processes that know each other: start with `accelerate launch`, or leave it out"
        )
    share = Share(distributed.get_rank(), distributed.get_world_size())
    counts = share.gather(sum(map(sequences, batches)))
    if not all(counts):
        raise InputError(
            f"batches: processes were given {counts} sequences: pass each at least one, or start fewer processes"
        )
    return Share(share.rank, share.world, sum(counts[: share.rank]))


def sequences(batch: Mapping[str, Any]) -> int:
    """Sequences of a batch: the first dimension of its first tensor."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 1)


def split(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The batches of this process: whole ones, those of process 0 first, so that no batch is another than in one process.

    Raises:
        InputError: there are fewer batches than processes.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if len(batches) < world:
        raise InputError(
            f"{len(batches)} batches for {world} processes: pass a smaller --batch-size, more --tokens, or start fewer processes"
        )
    ends = torch.linspace(0, len(batches), world + 1).round().int().tolist()
    return list(batches[ends[rank] : ends[rank + 1]])
