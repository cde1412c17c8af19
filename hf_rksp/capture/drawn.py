"""Whether weights are random: what was drawn is even, and what was trained is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.capture.linears import find_linears
from hf_rksp.capture.norms import NormModule, norms_of_states

#: A matrix is uneven if the sizes of its rows, or of its columns, vary this many times as much as those of independent numbers do.
#: Training makes matrices uneven. Weights are trained if this share of the matrices is uneven.
_UNEVEN, _SHARE = 2.0, 0.25
#: Of each stack so many blocks are read, and of each block so many experts.
_BLOCKS, _EXPERTS = 8, 4
#: Shorter rows and columns say little.
_SHORTEST = 16


def weights_are_trained(model: nn.Module, stacks: Sequence[Stack], norms: Sequence[NormModule]) -> bool:
    """Whether the weights of a model are trained, or may be. The weights have to be whole: ask before an engine shards them.

    Args:
        stacks: its residual blocks.
        norms: from `hf_rksp.capture.norms.find_norms`.
    """
    # A state space has vectors that differ from the beginning: the norms tell, if there are any.
    vectors = nn.ModuleList(norm.module for norm in norms_of_states(norms)) if norms else model
    return _vectors_vary(vectors) or _matrices_are_trained(stacks, getattr(model, "config", None))


def _vectors_vary(model: nn.Module) -> bool:
    """Whether some vector of a model (gains of its norms, biases) is no constant, as they are at first."""
    vectors = (weight.detach() for weight in model.parameters() if weight.ndim == 1 and weight.numel() > 1)
    return any(bool((vector != vector[0]).any()) for vector in vectors)


def _matrices_are_trained(stacks: Sequence[Stack], config: Any) -> bool:
    """Whether the matrices of the blocks show that they were trained; also if there is none that can tell.

    However a matrix is drawn, its numbers are independent, and so the sizes of its rows differ little, and those of its columns.
    """
    few = [replace(stack, blocks=_spaced(stack.blocks)) for stack in stacks]
    found = []
    for one in find_linears(few, config):
        if (one.expert or 0) < _EXPERTS:
            with one.matrix() as matrix, torch.no_grad():
                if min(matrix.shape) >= _SHORTEST and bool(matrix.any()):
                    found.append(not unevenness(matrix.detach()) <= _UNEVEN)  # NaN too
    return not found or sum(found) >= _SHARE * len(found)


def _spaced(blocks: Sequence[Block]) -> tuple[Block, ...]:
    step = max(1, -(-len(blocks) // _BLOCKS))
    return tuple(blocks[::step])


def unevenness(matrix: Tensor) -> float:
    """Variance of the mean squares of the rows of a matrix, per that of independent numbers; that of the columns if it is larger.

    About 1 for a matrix that was drawn, whatever the distribution, and less for an orthogonal one.

    Args:
        matrix: shape ``(out, in)``, not zero.
    """
    squares = matrix.float().square()
    squares = squares / squares.mean()
    fourth = squares.square().mean() - 1  # kurtosis minus 1
    ratios = [squares.mean(dim).var() * squares.shape[dim] / fourth.clamp_min(1e-6) for dim in (0, 1)]
    return float(torch.stack(ratios).max())
