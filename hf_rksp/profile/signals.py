"""What one forward pass shows besides the spectrum: growth of the stream, attention logits, the normaliser of the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, capture_transitions
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.capture.virtual_step import restored


@dataclass(frozen=True)
class ForwardSignals:
    """Numbers of a forward pass at fixed weights.

    Attributes:
        residual_growth: root mean square of the states behind the last block, per that in front of the first, of the stack in
            which it is largest; ``None`` if no block returned a state.
        block_growth: the largest such ratio of one block.
        largest_attention_logit: before the softmax; ``None`` if no attention was seen
            (`hf_rksp.capture.attention.AttentionLogits`). Runs that pass 1e4 diverge (Wortsman et al., arXiv:2309.14322).
        log_z: mean of ``log sum exp`` over the entries of the logits of the output; ``None`` if the model returns none.
    """

    residual_growth: float | None
    block_growth: float | None
    largest_attention_logit: float | None
    log_z: float | None


def measure_signals(model: nn.Module, stacks: Sequence[Stack], run: Callable[[], object]) -> ForwardSignals:
    """Measure one forward pass without gradients. The model is left unchanged.

    Args:
        model, stacks: the model and its stacks, from `hf_rksp.capture.find_stacks`.
        run: one forward pass. What it returns is asked for ``logits``.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    blocks: list[float] = []

    def sink(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        before, after = _size(x), _size(y)
        first.setdefault(stack.path, before)
        last[stack.path] = after
        blocks.append(_ratio(after, before))

    with (
        restored(model),
        torch.no_grad(),
        capture_transitions(stacks, sink, refuse=lambda stack, block, error: None),
        AttentionLogits() as attention,
    ):
        output = run()
    logits = getattr(output, "logits", None)
    growth = [_ratio(last[path], first[path]) for path in first]
    return ForwardSignals(max(growth, default=None), max(blocks, default=None), attention.largest, _log_z(logits))


def _size(states: Tensor) -> float:
    return math.sqrt(float(states.detach().float().square().mean(dtype=torch.float64)))


def _ratio(after: float, before: float) -> float:
    return after / before if before else math.inf


def _log_z(logits: object) -> float | None:
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.size(-1) < 2:  # one number is no distribution
        return None
    return float(torch.logsumexp(logits.float(), -1).mean(dtype=torch.float64))
