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
#: Random tokens of the pass, at most.
_SEQUENCES, _TOKENS = 2, 16


@dataclass(frozen=True)
class Network:
    """What the choice depends on.

    Attributes:
        norm: of the blocks.
        behind: whether a norm stands behind a part of a block, so that its output is added to the states: OLMo-2, Gemma-3.
        attention: whether every block has it.
        trained: whether the weights are trained, or may be.
        causal: whether it is a causal language model.
    """

    norm: Norm
    attention: bool
    trained: bool
    causal: bool
    behind: bool = False

    @property
    def gains_always(self) -> bool:
        """Whether KSS acts at every learning rate: the forecast is not needed then."""
        return self.norm == "rms" and not self.behind and self.attention and self.causal and not self.trained


@dataclass
class _Seen:
    """Of one forward pass: blocks that ran, width of their states, attentions, a norm behind a part, entropy of the predictions."""

    blocks: int = 0
    width: int | None = None
    attentions: int = 0
    behind: bool = False
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
            seen = _passed(model, stacks, norms)
    norms = norms_of_states(norms, seen.width)
    guesses = _biases_are_zero(stacks) if seen.entropy is None else seen.entropy >= _GUESSING
    trained = varies or _gains_vary(model, norms) or not guesses
    blocks = seen.blocks or sum(len(stack.blocks) for stack in stacks)
    attentions = seen.attentions or _pairs(model, stacks)  # a flash kernel is not seen, and its projections are
    name = type(uncompiled(model)).__name__
    return Network(norm_of(norms), attentions >= blocks, trained, "CausalLM" in name or "LMHead" in name, seen.behind)


def vectors_vary(model: nn.Module) -> bool:
    """Whether some vector of a model (gains of its norms, biases) is no constant, as they are at first."""
    vectors = (weight.detach() for weight in model.parameters() if weight.ndim == 1 and weight.numel() > 1)
    return any(bool((vector != vector[0]).any()) for vector in vectors)


def _gains_vary(model: nn.Module, norms: Sequence[NormModule]) -> bool:
    # A state space has vectors that differ from the beginning: the norms tell, if there are any.
    return vectors_vary(nn.ModuleList(norm.module for norm in norms) if norms else model)


def _biases_are_zero(stacks: Sequence[Stack]) -> bool:
    """Whether every block has layers with biases, and all of them are 0: training moves them. It tells of models without tokens."""
    biases = [
        [part.bias for part in block.module.modules() if isinstance(part, nn.Linear) and part.bias is not None]
        for stack in stacks
        for block in stack.blocks
    ]
    return all(biases) and not any(bool(bias.detach().any()) for block in biases for bias in block)


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
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    tokens = min(_TOKENS, positions) if isinstance(positions, int) and positions > 0 else _TOKENS
    draw = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids = torch.randint(0, vocabulary, (_SEQUENCES, tokens), generator=draw).to(device)
    more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    return model(input_ids=ids, **more)


def _passed(model: nn.Module, stacks: Sequence[Stack], norms: Sequence[NormModule]) -> _Seen:
    """One pass over random tokens: the predictions of random weights are those of guessing, whatever the text."""
    seen, logits_of = _Seen(), AttentionLogits()
    normalised: list[tuple[Tensor, Tensor]] = []  # inputs and outputs of the norms of the block that runs

    def sink(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        seen.blocks, seen.width = seen.blocks + 1, x.shape[-1]
        seen.behind = seen.behind or _adds_a_norm(x, y, [pair for pair in normalised if pair[1].numel() == y.numel()])
        normalised.clear()

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is not None and isinstance(output, Tensor):
            normalised.append((given, output))

    with (
        restored(model),
        untouched(model),
        capture_transitions(stacks, sink, lambda stack, block, error: None),
        logits_of,
        contextlib.ExitStack() as hooks,
    ):
        for norm in norms:
            hooks.callback(norm.module.register_forward_hook(keep, with_kwargs=True).remove)
        output = _run(model)
    seen.attentions = logits_of.calls
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor) and logits.ndim == 3:
        shares = logits.float().log_softmax(-1)
        entropy = float(-(shares.exp() * shares).sum(-1).mean())
        seen.entropy = entropy / math.log(logits.shape[-1]) if math.isfinite(entropy) else None
    return seen


def _adds_a_norm(x: Tensor, y: Tensor, normalised: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the output of a block is a state plus the output of a norm.

    Args:
        x, y: input and output of the block.
        normalised: inputs and outputs of its norms.
    """
    x, y = x.double().flatten(), y.double().flatten()
    pairs = [(given.double().flatten(), output.double().flatten()) for given, output in normalised]
    # What the last sum may start from: the input of the block, that of a norm, and the input plus the output of a norm.
    states = [x, *(given for given, _ in pairs), *(x + output for _, output in pairs)]
    rounding = 4 * torch.finfo(normalised[0][1].dtype).eps * float(y.abs().max()) if normalised else 0.0
    return any(
        float((y - output - state).abs().max()) <= 0.01 * float(output.abs().max()) + rounding
        for _, output in pairs
        for state in states
    )
