"""Sums over the processes of a run; without ``torch.distributed`` a process is alone and nothing happens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from hf_rksp.capture import Stack, restore


def world_size() -> int:
    """Number of processes that take part; 1 without ``torch.distributed``."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """``tensor`` added up over all processes. Every process has to call it."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    torch.distributed.all_reduce(total)
    return total


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
    found: list[dict[str, tuple[str, ...]]] = [{}] * world_size()
    torch.distributed.all_gather_object(found, {stack.path: stack.left_out for stack in stacks})
    return restore(model, found)


def reshard(model: nn.Module) -> None:
    """Let go of the gathered weights that FSDP2 keeps after a pass without gradients."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
