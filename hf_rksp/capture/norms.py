"""Which normalisation the residual blocks have, by what their modules do and not by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.virtual_step import restored

#: "layer" takes the mean of a state out and divides by the scatter, "rms" divides by the root mean square alone.
Norm = Literal["layer", "rms", "none"]
#: Width of the states that a module without weights is tried on, if neither it nor anybody else says it.
_WIDTH = 64


def norm_of(stacks: Sequence[Stack], width: int | None = None) -> Norm:
    """What normalises the states in the blocks; "layer" if both kinds do.

    A norm that is no module of its own is not seen. Nothing of the model changes, and its hooks are not called. Weights have to be
    whole: call it before an engine shards them.

    Args:
        stacks: the residual blocks.
        width: of their states. If it is not known, the widest norm counts that has the length of a side of some matrix of its
            block, so that a norm of queries and keys does not.
    """
    kinds = {kind for _, kind in norms_in(stacks, width)}
    return "none" if not kinds else "layer" if "layer" in kinds else "rms"


def norms_in(stacks: Sequence[Stack], width: int | None = None) -> list[tuple[nn.Module, Norm]]:
    """The modules that normalise the states in the blocks, and what each does."""
    found: dict[int, list[tuple[nn.Module, Norm]]] = {}
    for stack in stacks:
        for block in stack.blocks:
            sides = {side for weight in block.module.parameters() if weight.ndim > 1 for side in weight.shape}
            with restored(block.module):
                for module, own in _candidates(block.module, width or _WIDTH):
                    fits = own in sides if width is None else own == width
                    if fits and (kind := kind_of(module, own)):
                        found.setdefault(own, []).append((module, kind))
    return found[max(found)] if found else []


def _candidates(block: nn.Module, width: int) -> Iterator[tuple[nn.Module, int]]:
    """Modules without parts whose weights are vectors of one length, and that length; ``width`` for one without weights."""
    for module in block.modules():
        if next(module.children(), None) is not None:
            continue
        shapes = {tuple(weight.shape) for weight in module.parameters(recurse=False)}
        if not shapes:
            own: Any = getattr(module, "normalized_shape", (width,))
            shapes = {tuple(own) if isinstance(own, (tuple, list)) else (own,)}
        (shape, *more) = shapes
        if not more and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > 1:
            yield module, shape[0]


@torch.no_grad()
def kind_of(module: nn.Module, width: int) -> Norm | None:
    """What a module does to states of shape ``(8, width)``; ``None`` if it normalises nothing.

    A norm gives the same for states that are eight times as large, and a layer norm also for states that are moved by a constant.

    >>> kind_of(nn.LayerNorm(16), 16), kind_of(nn.RMSNorm(16), 16), kind_of(nn.GELU(), 16)
    ('layer', 'rms', None)
    """
    weight = next(module.parameters(recurse=False), torch.empty(0))
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    training = module.training
    try:
        module.training = False
        # The method itself: no hook of the model is called.
        once, scaled, moved = (type(module).forward(module, states) for states in (x, 8 * x, x + 4))
        if once.shape != x.shape or not once.isfinite().all() or not once.any():
            return None
        close = 0.05 * float(once.abs().max())
        if not torch.allclose(scaled, once, rtol=0, atol=close):
            return None
        return "layer" if torch.allclose(moved, once, rtol=0, atol=close) else "rms"
    except Exception:  # it takes something else than states
        return None
    finally:
        module.training = training
