"""What KSS does with the layers that it measured: the interface that schedules implement, and experiments with them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from hf_rksp.capture import Layout, Transition
from hf_rksp.config import KSSConfig
from hf_rksp.spectral.penalties import SolvedLayers

Config = TypeVar("Config", bound=KSSConfig)


@dataclass
class Measured:
    """The chosen layers of one stack in one forward pass, measured.

    Attributes:
        layers: transitions, with states of one shape, in the order in which they ran.
        last: the end of the residual stream.
        layout: which states are tokens, and of which sequence.
        weights: 1 for a token and 0 for padding, shape ``(N, 1)``; ``None`` without padding.
        directions: shape ``(layers, d, r)``.
        projected: of each layer, states before and after the block on the directions, each ``(N, r)``; with graph if the schedule
            has a term.
        sums: of each layer, `projected_sums` of this process, with graph if the schedule has a term.
        solved: spectra, penalties and gradients at the sums of all processes, on the host.
        gradients: the same gradients on the device of the states, shape ``(layers, 1 + 2 r + 2 r^2)``.
        copies: how often the sums of this pass count in what the gradients are of: processes times passes of a step that was
            measured beforehand.
    """

    layers: list[Transition]
    last: Transition
    layout: Layout
    weights: Tensor | None
    directions: Tensor
    projected: list[tuple[Tensor, Tensor]]
    sums: list[Tensor]
    solved: SolvedLayers
    gradients: Tensor
    copies: int

    @functools.cached_property
    def radii(self) -> np.ndarray[Any, Any]:
        """Spectral radius of each layer; NaN if it could not be solved."""
        radii: np.ndarray[Any, Any] = np.abs(self.solved.eigenvalues).max(-1)
        return radii


class Schedule(Generic[Config]):
    """Acts on what was measured. An experiment overrides `act`, or a part of a schedule's own.

    Attributes:
        config: settings of KSS.
        has_term: whether it adds to the loss; else it acts in the backward pass alone.
    """

    has_term = False

    def __init__(self, config: Config) -> None:
        self.config = config
        #: Gradients (a sequence in a layer) left out so far because they were not finite; on the device, so that nothing waits.
        self.lost: Tensor | int = 0

    def act(self, measured: Measured) -> Tensor | None:
        """Act on one pass: set what the backward pass adds at the states, or return the sum of the weighted penalties."""
        raise NotImplementedError

    def block_weight(self, layer: Transition, last: Transition) -> float:
        """Weight of a block, relative to that of the others."""
        alone = len(layer.stack.blocks) == 1 and layer is last
        return self.config.first_block_weight if layer.block.index == 0 and not alone else 1.0


class Watching(Schedule[KSSConfig]):
    """Does nothing: KSS measures, and the run is that without it to the bit."""

    def act(self, measured: Measured) -> None:
        """Nothing."""


def sizes_of_sequences(rows: Tensor, layout: Layout) -> Tensor:
    """Norm of each sequence of ``(n, t, ...)``, in float32 at least."""
    sizes: Tensor = torch.linalg.vector_norm(
        rows.flatten(1), dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    if layout.owner is None:
        return sizes
    return sizes.new_zeros(layout.sequences).index_add(0, layout.owner, sizes.square()).sqrt()
