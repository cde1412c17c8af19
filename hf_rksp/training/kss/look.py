"""One pass of a model over a few random tokens: where its norms stand, and which blocks have attention."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_rksp.capture import Block, Stack, capture_transitions, find_stacks, untouched
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.capture.calling import eager, takes
from hf_rksp.capture.norms import Norm, NormModule
from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import CaptureError

#: Random tokens of the pass, at most.
_SEQUENCES, _TOKENS = 2, 16


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
            with restored(model), untouched(model), eager():
                return find_stacks(model, blocks, functools.partial(_run, model))
        except Exception:  # it takes something else than token ids, or more
            raise error from None


@dataclass
class Seen:
    """Of one forward pass.

    Attributes:
        least: path of a block -> attentions in the run that had the fewest.
        behind: whether a norm stands behind a part.
        normalise: modules that normalise the states.
        functional: norm of the states that is called as a function, without a module.
    """

    least: dict[str, int] = field(default_factory=dict)
    behind: bool = False
    normalise: set[nn.Module] = field(default_factory=set)
    functional: Norm = "none"


class _FunctionalNorms(TorchFunctionMode):
    """Keeps the kind and the size of what `torch.nn.functional` normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[Norm, tuple[int, int]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind: Norm | None = {functional.layer_norm: "layer", functional.rms_norm: "rms"}.get(function)  # type: ignore[assignment]
        if kind is not None and args:
            self.called.append((kind, _size(args[0])))
        return function(*args, **(kwargs or {}))


def look(model: nn.Module, stacks: Sequence[Stack], norms: Sequence[NormModule]) -> Seen:
    """Make the pass; the model is left as it is.

    Args:
        stacks: its residual blocks.
        norms: from `hf_rksp.capture.norms.find_norms`.

    Raises:
        Whatever the model raises, if it takes something else than token ids.
    """
    seen, logits_of, functions = Seen(), AttentionLogits(), _FunctionalNorms()
    normalised: list[tuple[nn.Module, Tensor, Tensor]] = []  # norms of the block that runs, their inputs and outputs
    parts: list[Tensor] = []  # what the other modules of the block have returned
    entered: list[Tensor] = []  # the state that the block has taken
    are_norms = {norm.module for norm in norms}

    def sink(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        seen.least[block.path] = min(seen.least.get(block.path, logits_of.calls), logits_of.calls)
        mine = [entry for entry in normalised if _size(entry[1]) == _size(y)]
        seen.normalise |= {module for module, _, _ in mine}
        kinds: set[Norm] = {kind for kind, size in functions.called if size == _size(y)}
        if kinds:
            seen.functional = "layer" if "layer" in kinds | {seen.functional} else "rms"
        same = [part for part in parts if part.numel() == y.numel()]
        seen.behind = seen.behind or any(
            _is_multiple(y, output) or any(_is_multiple(given, part) for part in same) for _, given, output in mine
        )
        forget()

    def forget() -> None:
        for kept in (normalised, parts, entered):
            kept.clear()
        functions.called.clear()
        logits_of.calls = 0

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        forget()
        entered.extend(tensor.clone() for tensor in _tensors((*args, *kwargs.values())))

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = _tensors((*args, *kwargs.values()))
        returned = _tensors(output if isinstance(output, (tuple, list)) else (output,))
        if module in are_norms:
            normalised.extend((module, given[0].clone(), tensor.clone()) for tensor in returned if given)
            return
        # What takes the stream may return the stream with something added: BLOOM's attention. So may a dropout at rest.
        stream = [*entered, *(state for _, state, _ in normalised), *returned]
        if not any(_equal(one, state) for one in given for state in stream):
            parts.extend(tensor.clone() for tensor in returned)  # a block may add to it in place

    with contextlib.ExitStack() as open_:
        for context in (restored(model), untouched(model), eager()):
            open_.enter_context(context)
        for stack in stacks:
            for block in stack.blocks:
                open_.callback(block.module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                for module in block.module.modules():
                    if module is not block.module:
                        open_.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        open_.enter_context(capture_transitions(stacks, sink, lambda stack, block, error: None))
        open_.enter_context(logits_of)
        open_.enter_context(functions)
        _run(model)
    return seen


def _size(states: Tensor) -> tuple[int, int]:
    """Number of entries, and the width: heads of queries have another one."""
    return states.numel(), states.shape[-1]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and one.dtype == other.dtype and torch.equal(one.flatten(), other.flatten())


def _is_multiple(one: Tensor, other: Tensor) -> bool:
    """Whether ``one`` is ``other`` times a number: to the bit in half precision, where rounding could make it so."""
    if one.numel() != other.numel():
        return False
    if _equal(one, other):
        return True
    if torch.finfo(one.dtype).bits < 32 or torch.finfo(other.dtype).bits < 32:
        return False
    a, b = one.flatten().double(), other.flatten().double()
    factor = (a @ b) / (b @ b).clamp_min(1e-300)
    return bool(a.any()) and bool((a - factor * b).norm() <= 1e-5 * a.norm())


def _run(model: nn.Module) -> Any:
    """What a model returns for random tokens."""
    config: Any = model.config
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    decoder = getattr(config, "decoder", None)
    sizes = [
        getattr(config, "vocab_size", 0) or config.get_text_config().vocab_size,
        getattr(embeddings, "num_embeddings", 0),
        getattr(config, "decoder_vocab_size", 0),
        getattr(decoder, "vocab_size", 0),
    ]
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # RoBERTa counts positions from its padding token on, so it has two fewer.
    tokens = min(_TOKENS, max(positions - 2, 1)) if isinstance(positions, int) and positions > 0 else _TOKENS
    draw = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    ids = torch.randint(0, min(filter(None, sizes)), (_SEQUENCES, tokens), generator=draw).to(device)
    more: dict[str, Any] = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    if takes(model, "use_cache"):
        more["use_cache"] = False
    return model(input_ids=ids, **more)
