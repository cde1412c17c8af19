"""What of a network decides whether KSS acts: norm, attention, trained weights. One small forward pass, without data."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, capture_transitions, find_stacks, untouched
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.linears import find_linears, query_key_pairs
from hf_rksp.capture.norms import Norm, NormModule, find_norms, norm_of, norms_of_states
from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import CaptureError

#: Entropy of the predictions for random tokens, relative to that of guessing, from which on weights are taken for random.
_GUESSING = 0.85
#: Random tokens of the pass.
_SEQUENCES, _TOKENS = 2, 16


@dataclass(frozen=True)
class Network:
    """What the choice depends on.

    Attributes:
        norm: of the blocks.
        attention: whether every block has it.
        trained: whether the weights are trained, or may be.
        causal: whether it is a causal language model.
    """

    norm: Norm
    attention: bool
    trained: bool
    causal: bool

    @property
    def gains_always(self) -> bool:
        """Whether KSS acts at every learning rate: the forecast is not needed then."""
        return self.norm == "rms" and self.attention and self.causal and not self.trained


@dataclass
class _Seen:
    """Of one forward pass: blocks that ran, width of their states, attentions, and the entropy of the predictions."""

    blocks: int = 0
    width: int | None = None
    attentions: int = 0
    entropy: float | None = None


def stacks_without_data(model: nn.Module, blocks: str | Sequence[str] | None = None) -> list[Stack]:
    """The residual blocks of a model, before there is a batch of it.

    Args:
        blocks: path(s) of the list(s) of residual blocks.

    Raises:
        CaptureError: none are found by the modules, nor by a pass over random tokens. InputError: see `find_stacks`.
    """
    try:
        return find_stacks(model, blocks)
    except CaptureError as error:
        try:
            with restored(model), untouched(model):
                return find_stacks(model, blocks, functools.partial(_run, model))
        except Exception:  # it takes something else than token ids, or more
            raise error from None


def network_of(model: nn.Module, stacks: Sequence[Stack], pass_if_trained: bool = True) -> Network:
    """Look at a model that no engine has sharded yet; it is left as it is.

    Args:
        stacks: its residual blocks.
        pass_if_trained: make the forward pass also if gains tell that the weights are trained. Without it attention is told by the
            names of projections then.
    """
    norms, seen = find_norms(stacks), _Seen()
    varies = _gains_vary(model, norms_of_states(norms))
    if pass_if_trained or not varies:
        with contextlib.suppress(Exception):  # it takes something else than token ids, or more
            seen = _passed(model, stacks)
    norms = norms_of_states(norms, seen.width)
    trained = varies or _gains_vary(model, norms) or seen.entropy is None or seen.entropy < _GUESSING
    blocks = seen.blocks or sum(len(stack.blocks) for stack in stacks)
    attentions = seen.attentions or _pairs(model, stacks)  # a flash kernel is not seen, and its projections are
    name = type(uncompiled(model)).__name__
    return Network(norm_of(norms), attentions >= blocks, trained, "CausalLM" in name or "LMHead" in name)


def vectors_vary(model: nn.Module) -> bool:
    """Whether some vector of a model (gains of its norms, biases) is no constant, as they are at first."""
    vectors = (weight.detach() for weight in model.parameters() if weight.ndim == 1 and weight.numel() > 1)
    return any(bool((vector != vector[0]).any()) for vector in vectors)


def _gains_vary(model: nn.Module, norms: Sequence[NormModule]) -> bool:
    # A state space has vectors that differ from the beginning: the norms tell, if there are any.
    return vectors_vary(nn.ModuleList(norm.module for norm in norms) if norms else model)


def _pairs(model: nn.Module, stacks: Sequence[Stack]) -> int:
    """Queries and keys that are found by the names of their projections."""
    config = getattr(model, "config", None)
    with contextlib.suppress(Exception):  # a configuration may have heads of several sizes
        return len(query_key_pairs(find_linears(stacks, config), config))
    return 0


def _run(model: nn.Module) -> Any:
    """What a model returns for random tokens."""
    config: Any = model.config
    vocabulary = int(getattr(config, "vocab_size", 0) or config.get_text_config().vocab_size)
    draw = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids = torch.randint(0, vocabulary, (_SEQUENCES, _TOKENS), generator=draw).to(device)
    more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    return model(input_ids=ids, **more)


def _passed(model: nn.Module, stacks: Sequence[Stack]) -> _Seen:
    """One pass over random tokens: the predictions of random weights are those of guessing, whatever the text."""
    seen, logits_of = _Seen(), AttentionLogits()

    def sink(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        seen.blocks, seen.width = seen.blocks + 1, x.shape[-1]

    with (
        restored(model),
        untouched(model),
        capture_transitions(stacks, sink, lambda stack, block, error: None),
        logits_of,
    ):
        output = _run(model)
    seen.attentions = logits_of.calls
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor) and logits.ndim == 3:
        shares = logits.float().log_softmax(-1)
        entropy = float(-(shares.exp() * shares).sum(-1).mean())
        seen.entropy = entropy / math.log(logits.shape[-1]) if math.isfinite(entropy) else None
    return seen
