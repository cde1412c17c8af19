"""Read and write weights of a run as wholes, whoever keeps them: one process, FSDP2, ZeRO.

ZeRO keeps a second copy in float32, from which its next step makes the weights of the model: both are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_rksp.capture.shards import local


def is_partitioned(weight: Tensor) -> bool:
    """Whether ZeRO-3 has spread ``weight`` over the processes."""
    return hasattr(weight, "ds_id")


def read_whole(weight: nn.Parameter) -> Tensor:
    """A copy of all numbers of ``weight``, on every process. Every process has to call it."""
    if is_partitioned(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    whole: Tensor = weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()
    return whole.detach()


@torch.no_grad()
def write_whole(weight: nn.Parameter, values: Tensor) -> None:
    """Put ``values``, which are the same on every process, into ``weight``. Every process has to call it."""
    if is_partitioned(weight):
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            weight.copy_(values)
        if hasattr(weight, "_z3_optimizer"):  # not before DeepSpeed has made its optimizer
            safe_set_full_fp32_param(weight, values.float())
        return
    values = values.to(device=weight.device, dtype=weight.dtype)
    if isinstance(weight, DTensor):
        spread = distribute_tensor(values, weight.device_mesh, weight.placements, src_data_rank=None)
        local(weight.detach()).copy_(local(spread))
        return
    weight.copy_(values)
    for piece, part in _second_copies(weight):
        piece.copy_(values.reshape(-1)[part])


def pieces(weight: nn.Parameter) -> Sequence[Tensor]:
    """The tensors of this process that hold ``weight``, for arithmetic that is the same on every entry. Not with ZeRO-3."""
    return [local(weight.detach()), *(piece.detach() for piece, _ in _second_copies(weight))]


def _second_copies(weight: nn.Parameter) -> list[tuple[Tensor, slice]]:
    """With ZeRO 1 and 2: the numbers in float32 that this process has, and which ones of ``weight`` they are."""
    fragment = getattr(weight, "_hp_mapping", None)
    if fragment is None:
        return []
    here = fragment.lp_fragment_address
    return [(fragment.hp_fragment, slice(here.start, here.start + here.numel))]
