"""The gradients and the weights of a step in a few numbers on the device; nothing here waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_rksp.capture.shards import copies, is_sharded, local
from hf_rksp.ranks import world_size
from hf_rksp.training.weights import is_partitioned

#: Entries of each weight that the norm of an update is estimated from.
_SAMPLE = 1024


def wide(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def gradient_numbers(weights: Mapping[str, nn.Parameter]) -> Tensor | None:
    """The squared norm of the gradient, then for each weight whether a number of its gradient is not finite.

    The sum over the processes is the squared norm of the whole gradient: entries that several processes have count once.

    Args:
        weights: by name; those without a gradient count as zero.

    Returns:
        Shape ``(1 + len(weights),)``, in `wide`; ``None`` if no weight has a gradient, as under DeepSpeed.
    """
    gradients = [None if weight.grad is None else _numbers_in(weight.grad.detach()) for weight in weights.values()]
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return None
    device = there[0].device
    norms = iter(torch._foreach_norm(there))
    zero = torch.zeros((), device=device)
    each = torch.stack([zero if gradient is None else next(norms).to(zero) for gradient in gradients])
    each = each.to(wide(device))
    return torch.cat([each.square().sum()[None] / _copies(weights), (~each.isfinite()).to(each)])


def _numbers_in(gradient: Tensor) -> Tensor:
    """What this process has of a gradient; of a sparse one what is not zero."""
    if gradient.layout is torch.sparse_coo:
        return gradient.coalesce().values()
    return local(gradient)


def own_part(weight: nn.Parameter) -> Tensor:
    """The numbers of ``weight`` that this process has, whoever keeps them."""
    part: Tensor = weight.ds_tensor if is_partitioned(weight) else weight.detach()  # type: ignore[attr-defined]
    return local(part.detach())


def broken_numbers(weights: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor]) -> Tensor:
    """For each weight and each buffer, whether a number of it is not finite here: shape ``(weights + buffers,)``, in `wide`."""
    parts = [*(own_part(weight) for weight in weights.values()), *(local(buffer) for buffer in buffers.values())]
    # The extremes, and not the moduli, which would take as much memory again.
    ends = [
        torch.stack(part.aminmax()).abs().amax().float() if part.numel() else part.new_zeros(()).float()
        for part in parts
    ]
    device = ends[0].device
    return (~torch.stack([one.to(device) for one in ends]).isfinite()).to(wide(device))


class Update:
    """The norm of the change that a step of the optimizer makes.

    It is estimated from `_SAMPLE` entries of each weight, spread over all of it: their mean square, times the number of entries.
    So it costs a few kernels and no copy of the weights, and it holds for any optimizer. Entries side by side would not do: they
    are in few rows of an embedding, and jump if a rare token occurs.

    Args:
        weights: by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self._before: Tensor | None = None
        self._scale: Tensor | None = None

    def begin(self) -> None:
        """The weights are about to move."""
        self._before = self._sample()

    def end(self) -> Tensor | None:
        """The squared norm of the change since `begin`, shape ``()``, in `wide`, which adds up over the processes."""
        before, self._before = self._before, None
        if before is None:
            return None
        after = self._sample()
        if after is None or len(after) != len(before):
            return None
        if self._scale is None:
            self._scale = self._scales(before.device)
        return ((after - before).to(self._scale).square() * self._scale).sum()

    def _parts(self) -> list[Tensor]:
        return [part for weight in self._weights.values() if (part := own_part(weight)).numel()]

    def _sample(self) -> Tensor | None:
        samples = [_spread(part) for part in self._parts()]
        if not samples:
            return None
        like = samples[0]
        return torch.cat([one if one.device == like.device else one.to(like.device) for one in samples]).float()

    def _scales(self, device: torch.device) -> Tensor:
        parts = self._parts()
        lengths = [len(_spread(part)) for part in parts]
        each = [part.numel() / length for part, length in zip(parts, lengths, strict=True)]
        scales = torch.tensor(each, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
        return (scales / _copies(self._weights)).to(device, wide(device))


def _spread(part: Tensor) -> Tensor:
    """`_SAMPLE` entries at equal distances, in all rows and all columns."""
    flat = part.reshape(-1)  # a view: what a process has of a weight is contiguous
    distance = max(flat.numel() // _SAMPLE, 1)
    while distance > 1 and part.ndim and math.gcd(distance, part.shape[-1]) > 1:
        distance -= 1
    return flat[::distance][:_SAMPLE]


def per_rate(update: Tensor | None, rate: Tensor | float | None) -> Tensor | None:
    """The squared norm of an update per learning rate; ``None`` if nobody knows the rate, or it is zero.

    The update of Adam is as large as its learning rate, so a schedule that restarts, or a rate that is given back, is no sign.
    """
    if update is None or rate is None:
        return None
    if isinstance(rate, Tensor):
        rate = rate.to(update)
        return torch.where(rate > 0, update / rate.square(), torch.zeros_like(update))
    return update / rate**2 if rate > 0 else None


def _copies(weights: Mapping[str, nn.Parameter]) -> int:
    """How many processes have the same entry."""
    if any(is_partitioned(weight) for weight in weights.values()):
        return 1
    return copies(weights.values()) if any(map(is_sharded, weights.values())) else world_size()


def named(flags: Sequence[float], names: Sequence[str]) -> list[str]:
    """The names whose flag is set."""
    return [name for name, flag in zip(names, flags, strict=True) if flag]
