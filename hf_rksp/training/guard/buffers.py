"""What a forward pass leaves in a model besides gradients: running means, which a step that is left out must not keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """Keeps a copy of the buffers that forward passes change, and puts it back.

    The first step keeps all buffers, and shows which ones change; later steps keep these alone.

    Args:
        model: whose buffers.

    Attributes:
        finite: the buffers of a checkpoint that were finite when the run began, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        self._first = True
        of_checkpoints = {
            f"{path}.{name}" if path else name: buffer
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set
        }
        self.finite = [name for name, buffer in of_checkpoints.items() if bool(buffer.isfinite().all())]
        self._model = model

    def begin(self) -> None:
        """A step begins."""
        there = [(module, name) for module, name in self._places if module._buffers.get(name) is not None]
        self._places, self._kept = there, []
        for module, name in there:
            buffer = module._buffers[name]
            assert buffer is not None
            self._kept.append((module, name, buffer, buffer.detach().clone()))

    def passed(self) -> None:
        """The forward passes of the step are over."""
        if self._first:
            self._kept = [kept for kept in self._kept if _changed(*kept)]
            self._places = [(module, name) for module, name, *_ in self._kept]
            self._first = False

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what the step has changed."""
        for module, name, buffer, copy in self._kept:
            buffer.copy_(copy)
            module._buffers[name] = buffer

    def before(self) -> dict[str, Tensor]:
        """The floating-point numbers that this step may have changed, as they were before it."""
        copies = [copy for *_, copy in self._kept if copy.is_floating_point()]
        return {str(number): copy for number, copy in enumerate(copies)}

    def now(self) -> dict[str, Tensor]:
        """Those of `finite` as they are."""
        buffers = dict(self._model.named_buffers()) if self.finite else {}
        return {name: buffers[name] for name in self.finite if name in buffers}


def _changed(module: nn.Module, name: str, buffer: Tensor, copy: Tensor) -> bool:
    """The version of a buffer does not tell: batch norm writes past it."""
    return module._buffers.get(name) is not buffer or not torch.equal(buffer, copy)
