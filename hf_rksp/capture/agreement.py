"""What the processes of a run have found, each in its own batch, made the same on all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch.distributed
from torch import nn

from hf_rksp.capture import Stack, restore
from hf_rksp.ranks import current_ranks, world_size


def agreed(stacks: Sequence[Stack], mine: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of the layers ``mine`` that every process has, so that all take part in the same sums.

    Every process has to call it. Of a module that runs several times, the runs up to the first that a process lacks count.
    """
    if world_size() == 1:
        return set(mine)
    blocks = [(stack, block) for stack in stacks for block in stack.blocks]
    counts = torch.zeros(len(blocks), dtype=torch.int64)
    for place, (stack, block) in enumerate(blocks):
        while (stack.path, stack.layer(block, int(counts[place])).index) in mine:
            counts[place] += 1
    if torch.distributed.get_backend() == "nccl":
        counts = counts.cuda()
    torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MIN)
    runs = zip(blocks, counts.tolist(), strict=True)
    return {(stack.path, stack.layer(block, run).index) for (stack, block), number in runs for run in range(number)}


def found_anywhere(model: nn.Module, stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks that any process found in its own batch: batches may reach different parts of a model.

    Every process has to call it, and all get the same stacks.
    """
    if world_size() == 1:
        return list(stacks)
    found = current_ranks().gather({stack.path: stack.left_out for stack in stacks})
    return restore(model, found)
