"""Which normalisation the residual blocks have, by what their modules do and not by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.virtual_step import restored

#: "layer" takes the mean of a state out and divides by the scatter, "rms" divides by the root mean square alone.
Norm = Literal["layer", "rms", "none"]
#: Width of the states that a module without weights is tried on, if it does not say its own.
_WIDTH = 64


@dataclass(frozen=True)
class NormModule:
    """A module that normalises.

    Attributes:
        module: itself.
        kind: what it does.
        width: of the states that it takes; ``None`` for any.
    """

    module: nn.Module
    kind: Norm
    width: int | None


def norm_of(norms: Sequence[NormModule]) -> Norm:
    """What normalises the states, by `norms_of_states`; "layer" if both kinds do."""
    kinds = {norm.kind for norm in norms}
    return "none" if not kinds else "layer" if "layer" in kinds else "rms"


def norms_of_states(norms: Sequence[NormModule]) -> list[NormModule]:
    """Those of `find_norms` that normalise the states between the blocks, as far as it is known without a pass: the widest."""
    width = max((norm.width for norm in norms if norm.width), default=None)
    return [norm for norm in norms if norm.width in (width, None)]


def find_norms(stacks: Sequence[Stack]) -> list[NormModule]:
    """The norms in the blocks that are modules of their own; nothing of the model changes, and its hooks are not called.

    A norm of queries and keys is left out: no matrix of its block has a side of its length. Weights have to be whole: call it
    before an engine shards them.
    """
    found = []
    for stack in stacks:
        for block in stack.blocks:
            sides = {side for weight in block.module.parameters() if weight.ndim > 1 for side in weight.shape}
            with restored(block.module):
                for module, width in _candidates(block.module):
                    if (width is None or width in sides) and (kind := kind_of(module, width or _WIDTH)):
                        found.append(NormModule(module, kind, width))
    return found


def _candidates(block: nn.Module) -> Iterator[tuple[nn.Module, int | None]]:
    """Modules without parts whose weights are vectors of one length, and that length; ``None`` if nothing tells it."""
    for module in block.modules():
        if next(module.children(), None) is not None:
            continue
        shapes = {tuple(weight.shape) for weight in module.parameters(recurse=False)}
        if not shapes:
            own: Any = getattr(module, "normalized_shape", None)
            if own is None:
                yield module, None
                continue
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
