"""The gradients and the weights of a step in a few numbers on the device; nothing here waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_rksp.capture.shards import copies, is_sharded, local
from hf_rksp.ranks import world_size
from hf_rksp.training.weights import is_partitioned

#: Entries of each weight that the norm of an update is estimated from.
_SAMPLE = 1024


def gradient_numbers(weights: Mapping[str, nn.Parameter]) -> Tensor | None:
    """The squared norm of the gradient, then for each weight whether a number of its gradient is not finite.

    The sum over the processes is the squared norm of the whole gradient: entries that several processes have count once.

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
    return torch.cat([each.square().sum()[None] / _copies(weights), (~each.isfinite()).double()])


def own_part(weight: nn.Parameter) -> Tensor:
    """The numbers of ``weight`` that this process has, whoever keeps them."""
    part: Tensor = weight.ds_tensor if is_partitioned(weight) else weight.detach()  # type: ignore[attr-defined]
    return local(part.detach())


def broken_weights(weights: Mapping[str, nn.Parameter]) -> Tensor:
    """For each weight, whether a number of it is not finite here: shape ``(len(weights),)``, float64."""
    parts = [own_part(weight) for weight in weights.values()]
    largest = [part.abs().amax().float() if part.numel() else part.new_zeros(()).float() for part in parts]
    device = largest[0].device
    return (~torch.stack([one.to(device) for one in largest]).isfinite()).double()


class Update:
    """The norm of the change that a step of the optimizer makes.

    It is estimated from `_SAMPLE` entries in the middle of each weight: their mean square, times the number of entries. So it costs
    a few kernels and no copy of the weights, and it holds for any optimizer.

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
        """The squared norm of the change since `begin`, shape ``()``, float64, which adds up over the processes."""
        before, self._before = self._before, None
        if before is None:
            return None
        after = self._sample()
        if after is None or len(after) != len(before):
            return None
        if self._scale is None:
            self._scale = self._scales(before.device)
        return ((after - before).double().square() * self._scale).sum()

    def _parts(self) -> list[Tensor]:
        return [part for weight in self._weights.values() if (part := own_part(weight)).numel()]

    def _sample(self) -> Tensor | None:
        samples = [_middle(part) for part in self._parts()]
        if not samples:
            return None
        like = samples[0]
        return torch.cat([one if one.device == like.device else one.to(like.device) for one in samples]).float()

    def _scales(self, device: torch.device) -> Tensor:
        parts = self._parts()
        lengths = [min(part.numel(), _SAMPLE) for part in parts]
        each = [part.numel() / length for part, length in zip(parts, lengths, strict=True)]
        scales = torch.tensor(each, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
        return (scales / _copies(self._weights)).to(device)


def _middle(part: Tensor) -> Tensor:
    flat = part.reshape(-1)  # a view: what a process has of a weight is contiguous
    start = max((flat.numel() - _SAMPLE) // 2, 0)
    return flat[start : start + _SAMPLE]


def _copies(weights: Mapping[str, nn.Parameter]) -> int:
    """How many processes have the same entry."""
    if any(is_partitioned(weight) for weight in weights.values()):
        return 1
    return copies(weights.values()) if any(map(is_sharded, weights.values())) else world_size()


def named(flags: Sequence[float], names: Sequence[str]) -> list[str]:
    """The names whose flag is set."""
    return [name for name, flag in zip(names, flags, strict=True) if flag]
