"""The gradients of a step in a few numbers on the device: their norm, and in which weights they are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_rksp.capture.shards import copies, is_sharded, local
from hf_rksp.ranks import world_size


def gradient_numbers(weights: Mapping[str, nn.Parameter]) -> Tensor | None:
    """The squared norm of the gradient, then for each weight whether a number of its gradient is not finite.

    The sum over the processes is the squared norm of the whole gradient: entries that several processes have count once. Nothing
    waits for the device.

    Args:
        weights: by name; those without a gradient count as zero.

    Returns:
        Shape ``(1 + len(weights),)``, float64; ``None`` if no weight has a gradient, as under DeepSpeed.
    """
    gradients = [None if weight.grad is None else local(weight.grad.detach()) for weight in weights.values()]
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return None
    device = there[0].device
    norms = iter(torch._foreach_norm(there))
    zero = torch.zeros((), device=device)
    each = torch.stack([zero if gradient is None else next(norms).to(zero) for gradient in gradients]).double()
    shared = copies(weights.values()) if any(map(is_sharded, weights.values())) else world_size()
    return torch.cat([each.square().sum()[None] / shared, (~each.isfinite()).double()])
