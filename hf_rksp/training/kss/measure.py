"""Project the layers of a forward pass, and solve what was added up: what KSS knows before a schedule acts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rksp.capture import Transition
from hf_rksp.config import KSSConfig
from hf_rksp.ranks import sum_over_ranks
from hf_rksp.spectral import SecondMoments
from hf_rksp.spectral.penalties import SolvedLayers, solve_penalties
from hf_rksp.spectral.shaping import (
    leading_directions,
    leading_directions_of_moments,
    project,
    projected_sums,
    projected_sums_of_moments,
)
from hf_rksp.training.aside import Aside
from hf_rksp.training.kss.streams import Stream


@dataclass(frozen=True)
class SolvedLayer:
    """What a block is shaped by in all passes of a step that was measured beforehand.

    Attributes:
        directions: shape ``(d, r)``.
        eigenvalues: shape ``(r,)``.
        gradient: of the penalty at the sums, shape ``(1 + 2 r + 2 r^2,)``.
        good: whether everything is finite.
    """

    directions: Tensor
    eigenvalues: np.ndarray[Any, Any]
    penalty: float
    gradient: Tensor
    good: bool


@dataclass
class Projected:
    """One stack of a pass on its directions; see `hf_rksp.training.kss.schedule.Measured`."""

    layers: list[Transition]
    stream: Stream
    weights: Tensor | None
    directions: Tensor
    projected: list[tuple[Tensor, Tensor]]
    sums: list[Tensor]
    config: KSSConfig


def project_layers(
    layers: list[Transition],
    stream: Stream,
    config: KSSConfig,
    generator: torch.Generator,
    solved: Sequence[SolvedLayer],
    with_graph: bool,
) -> Projected:
    """The chosen layers of one stack on their directions, and their sums in this process.

    Args:
        layers: of ``stream``.
        config: with a rank.
        generator: of the directions.
        solved: of each layer, if the step was measured beforehand: its directions are taken.
        with_graph: whether gradients will pass through the sums.
    """
    assert config.rank is not None
    layout = stream.layout
    weights = None if layout.mask is None else layout.mask.reshape(-1, 1)
    with torch.set_grad_enabled(with_graph):
        states = [(layout.read(layer.x).flatten(0, 1), layout.read(layer.y).flatten(0, 1)) for layer in layers]
        if solved:
            dtype = torch.promote_types(layers[0].x.dtype, torch.float32)
            directions = torch.stack([layer.directions for layer in solved]).to(dtype)
        else:
            directions = leading_directions(
                [x.detach() for x, _ in states], config.rank, generator, config.centred, weights, sum_over_ranks
            )
        projected = [
            (project(x, basis, weights), project(y, basis, weights))
            for (x, y), basis in zip(states, directions, strict=True)
        ]
        sums = [projected_sums(p, q, weights) for p, q in projected]
    return Projected(layers, stream, weights, directions, projected, sums, config)


def project_moments(
    moments: Sequence[SecondMoments], config: KSSConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Directions and sums of layers from the moments of all passes of a step, shapes ``(layers, d, r)`` and ``(layers, ...)``."""
    assert config.rank is not None
    directions = leading_directions_of_moments(moments, config.rank, generator, config.centred)
    sums = [projected_sums_of_moments(m, basis) for m, basis in zip(moments, directions, strict=True)]
    return directions, torch.stack(sums)


def joined(solved: Sequence[SolvedLayer]) -> SolvedLayers:
    """Layers that were solved beforehand, as if they had been solved together."""
    return SolvedLayers(
        np.stack([one.eigenvalues for one in solved]),
        np.array([one.penalty for one in solved]),
        torch.stack([one.gradient for one in solved]),
        np.array([one.good for one in solved]),
    )


class Solver:
    """Solves sums, and keeps what the logs say of them.

    Args:
        aside: is told of batches of too few tokens.

    Attributes:
        dropped: layers so far that were left out because a number was not finite.
        seen: values since the last log, by key.
    """

    def __init__(self, aside: Aside) -> None:
        self.aside = aside
        self.dropped = 0
        self.seen: dict[str, list[float]] = {}

    def __call__(self, sums: Tensor, config: KSSConfig) -> SolvedLayers:
        """Solve the sums of all processes, which lie on the host, and note what was found."""
        assert config.rank is not None
        table = sums.numpy()
        few = (table[:, 0] < 2 * config.rank) & np.isfinite(table).all(-1)
        if few.any():
            self.aside("a batch of few tokens", _too_few(float(table[few, 0].max()), config.rank), int(few.sum()))
        solved = solve_penalties(sums, config)
        self.dropped += int((~solved.good).sum()) - int(few.sum())
        radii = np.abs(solved.eigenvalues[solved.good]).max(-1, initial=0.0)
        if len(radii):
            self._log("kss/loss", float(solved.penalties.sum()) / len(radii))
            self._log("kss/spectral_radius/max", float(radii.max()))
            self._log("kss/layers_above", float((radii > config.upper_threshold).mean()))
        return solved

    def pop_logs(self) -> dict[str, float]:
        """Means since the last call; of the spectral radius the largest."""
        logs = {name: sum(values) / len(values) for name, values in self.seen.items() if values}
        with contextlib.suppress(KeyError):
            logs["kss/spectral_radius/max"] = max(self.seen["kss/spectral_radius/max"])
        self.seen = {}
        return logs

    def _log(self, name: str, value: float) -> None:
        self.seen.setdefault(name, []).append(value)


def _too_few(tokens: float, rank: int) -> str:
    smaller = f", or kss_rank={int(tokens // 2)}" if tokens >= 2 else ""
    return f"{tokens:.0f} tokens do not determine an operator of rank {rank}; use batches of {2 * rank} tokens or more{smaller}"
