"""Does the model take these sequences? Found out on one of them, up to its second block, before the work starts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import eager, forward
from hf_rksp.errors import CaptureError, InputError, cause_of

Batch = Mapping[str, Any]


class _Stop(Exception):
    """Enough of the forward pass was seen."""


class _OutOfTable(Exception):
    """An index beyond the end of a table."""


class _Tables(TorchDispatchMode):
    """Compares indices with the table before it is read: on a GPU a wrong one would end the process."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.embedding.default:
            table, indices = args[0], args[1]
            if indices.numel() and indices.device.type != "meta":
                least, most = int(indices.min()), int(indices.max())
                if least < 0 or most >= table.shape[0]:
                    raise _OutOfTable(f"index {most if least >= 0 else least} of a table of {table.shape[0]} rows")
        return function(*args, **(kwargs or {}))


def check_length(
    model: nn.Module, batch_of: Callable[[int], Batch], length: int, name: str, streamed: bool = False
) -> None:
    """Refuse sequences that are longer than the model's positions, whatever kind of table they lie in.

    Args:
        model: ready to run.
        batch_of: makes a batch of the first sequence, cut to so many tokens.
        length: tokens of a sequence.
        name: of the model, for the message.
        streamed: its blocks have no weights yet, so only what comes before them is run.

    Raises:
        InputError: it does not take ``length`` tokens, with the number that it takes; or no text at all.
    """
    longest = functools.partial(_of_words, model, batch_of)
    error = _failure(model, longest(length), streamed)
    if error is None or isinstance(error, torch.OutOfMemoryError):  # a whole batch needs more: for profiling to say
        return
    shortest = next((n for n in (8, 4, 2) if n < length and _failure(model, longest(n), streamed) is None), None)
    if shortest is None:
        raise InputError(
            f"model={name!r} cannot be run with input_ids and attention_mask ({cause_of(error)}): call "
            "hf_rksp.profile_model(model, batches) with batches of its own"
        ) from error
    takes, fails = shortest, length
    while fails - takes > 1:
        middle = (takes + fails) // 2
        takes, fails = (middle, fails) if _failure(model, longest(middle), streamed) is None else (takes, middle)
    has = (
        f"has {takes} positions for tokens" if isinstance(error, (_OutOfTable, IndexError)) else f"takes {takes} tokens"
    )
    raise InputError(
        f"seq_len={length}: the model {has} ({cause_of(error)}); pass --seq-len {takes} or less"
    ) from error


def _of_words(model: nn.Module, batch_of: Callable[[int], Batch], length: int) -> Batch:
    """The batch with another id in the place of the padding's: models that count positions from the ids skip that one."""
    batch = dict(batch_of(length))
    ids, padding = batch.get("input_ids"), getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(ids, Tensor) and padding is not None:
        batch["input_ids"] = torch.where(ids == padding, 0 if padding else 1, ids)
    return batch


def _failure(model: nn.Module, batch: Batch, streamed: bool) -> Exception | None:
    with untouched(model), eager(), _stopping(model, streamed), _Tables():  # type: ignore[no-untyped-call]  # torch has no types for its constructor
        try:
            forward(model, batch)
        except _Stop:
            pass
        except Exception as error:  # of the model's own code
            return error
    return None


@contextlib.contextmanager
def _stopping(model: nn.Module, streamed: bool) -> Iterator[None]:
    """End the forward pass where the second block of the last stack begins, or the first block of the first."""
    try:
        stacks = find_stacks(model)
    except CaptureError:  # blocks that only running can tell: the whole pass it is
        stacks = []
    blocks = [block.module for stack in stacks for block in stack.blocks[:1]] if streamed else []
    if not streamed and stacks and len(stacks[-1].blocks) > 1:
        blocks = [stacks[-1].blocks[1].module]

    def stop(module: nn.Module, args: Any) -> None:
        raise _Stop

    handles = [block.register_forward_pre_hook(stop, prepend=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
