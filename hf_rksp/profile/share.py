"""A profile that several processes work on: each passes its share of the sequences, and solves its share of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rksp.errors import InputError
from hf_rksp.ranks import Ranks, current_ranks, distributed


@dataclass(frozen=True)
class Share(Ranks):
    """What part of the work this process has.

    Attributes:
        first: sequences that the processes before this one pass.
    """

    first: int = 0


#: A process that works alone.
ALONE = Share()


def share_of(batches: Sequence[Mapping[str, Any]], shared: bool) -> Share:
    """The share of this process, from the batches that it was given.

    Raises:
        InputError: ``shared`` without `torch.distributed`, or a process has no batch. All processes raise.
    """
    if not shared:
        return ALONE
    if not distributed():
        raise InputError(
            "shared=True needs processes that know each other: start with `accelerate launch`, or leave it out"
        )
    ranks = current_ranks()
    counts = ranks.gather(sum(map(sequences, batches)))
    if not all(counts):
        raise InputError(
            f"batches: processes were given {counts} sequences: pass each at least one, or start fewer processes"
        )
    return Share(ranks.rank, ranks.world, sum(counts[: ranks.rank]))


def sequences(batch: Mapping[str, Any]) -> int:
    """Sequences of a batch: the first dimension of its first tensor."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 1)


def split(batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The batches of this process: whole ones, those of process 0 first, so that no batch is another than in one process.

    Raises:
        InputError: there are fewer batches than processes.
    """
    ranks = current_ranks()
    rank, world = ranks.rank, ranks.world
    if len(batches) < world:
        raise InputError(
            f"{len(batches)} batches for {world} processes: pass a smaller --batch-size, more --tokens, or start fewer processes"
        )
    ends = torch.linspace(0, len(batches), world + 1).round().int().tolist()
    return list(batches[ends[rank] : ends[rank + 1]])
