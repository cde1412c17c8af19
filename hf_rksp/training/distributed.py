"""Sums over the processes of a run; without ``torch.distributed`` a process is alone and nothing happens."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn


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


def reshard(model: nn.Module) -> None:
    """Let go of the gathered weights that FSDP2 keeps after a pass without gradients."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
