"""Whether the processes of a run can measure together: each takes some of the batches, and what they find is put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rksp.capture.calling import eager, untouched
from hf_rksp.capture.virtual_step import restored
from hf_rksp.ranks import current_ranks, sum_over_ranks, world_size

#: Namespaces of the operators of `torch.distributed`.
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")


def can_share(model: nn.Module, run: Callable[[], object], batches: int) -> bool:
    """Whether every process may measure batches that the others do not.

    Not if there is one process, or more than batches; nor if ``run`` has a collective of its own (a contrastive loss over all
    devices, experts on several): it would wait for processes that run another number of passes. Every process has to call it.

    Args:
        model: not wrapped by an engine.
        run: one forward pass with the loss.
        batches: how many there are.
    """
    if not 1 < world_size() <= batches:
        return False
    with untouched(model), eager(), restored(model), torch.no_grad(), _Watch() as watch:
        failed = False
        try:
            run()
        except Exception:  # the measurement itself will say why
            failed = True
    if any(current_ranks().gather(failed or watch.seen)):
        return False
    try:
        sum_over_ranks(torch.zeros(1, device=next(model.parameters()).device))
    except RuntimeError:  # the backend does not reach this device; it says so on every process
        return False
    return True


class _Watch(TorchDispatchMode):
    """Notes the collectives that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen |= func.namespace in _COLLECTIVES
        return func(*args, **(kwargs or {}))
