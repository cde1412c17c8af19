"""How long a streamed profile will take, told before it starts: small problems of its kinds are timed and scaled up.

Rough, and rather too long: directions that fall to the cutoff are not known beforehand. The progress bar knows better after the
first blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_rksp.capture import find_stacks
from hf_rksp.spectral import choose_rank

#: Side of the matrices that are timed, and how many numbers are drawn.
_SIDE, _DRAWN = 512, 2**22
#: A spectrum next to the eigenvectors alone: inverse, condition, Schur form, residuals.
_SPECTRUM = 3.0


def estimate_seconds(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], rank: int | Literal["auto", "full"], groups: int
) -> tuple[float, int] | None:
    """Seconds that ``profile_model(model, batches, weights=...)`` will take, and the number of blocks.

    Args:
        model: its blocks may be on the meta device. batches, rank, groups: as for `profile_model`.

    Returns:
        ``None`` for a model whose configuration does not say how wide it is.
    """
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    if not isinstance(width, int):
        return None
    blocks = [block.module for stack in find_stacks(model) for block in stack.blocks]
    tokens = sum(batch["input_ids"].numel() for batch in batches if "input_ids" in batch)
    if not tokens:
        return None
    kept = rank if isinstance(rank, int) else choose_rank(rank, width, tokens)[0]
    span, dtype, threads = min(width, tokens), next(blocks[0].parameters()).dtype, torch.get_num_threads()
    draw = _timed(lambda: torch.empty(_DRAWN, dtype=dtype).normal_()) / _DRAWN
    left, right = torch.randn(tokens, _SIDE).to(dtype), torch.randn(_SIDE, 4 * _SIDE).to(dtype)
    forward = _timed(lambda: left @ right) / (4 * _SIDE**2)
    general = torch.randn(_SIDE // 2, _SIDE // 2, dtype=torch.float64)
    symmetric = general @ general.T
    whiten = _timed(lambda: torch.linalg.eigh(symmetric)) * (2 * span / _SIDE) ** 3
    spectrum = _SPECTRUM * _timed(lambda: torch.linalg.eig(general)) * (2 * kept / _SIDE) ** 3
    # Layers are solved side by side, one thread each.
    solve = (max(groups, 0) + 1) * (whiten + spectrum) * len(blocks) / min(threads, len(blocks))
    parameters = [(p, _active(p, model)) for block in blocks for p in block.parameters()]
    passes = sum(draw * p.numel() + forward * p.numel() * active for p, active in parameters)
    return passes + solve, len(blocks)


def _active(parameter: Tensor, model: nn.Module) -> float:
    """Share of a parameter that a token meets: experts are stacked in the first dimension of three."""
    chosen = getattr(model.config, "num_experts_per_tok", None)
    return chosen / parameter.shape[0] if parameter.ndim == 3 and isinstance(chosen, int) else 1.0


def _timed(work: Callable[[], object]) -> float:
    """The faster of two runs: the first one warms up."""
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
