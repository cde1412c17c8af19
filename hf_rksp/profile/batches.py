"""What a caller may pass as batches, as mappings of tensors; refused before any work starts if nothing can be made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from hf_rksp.errors import InputError, cause_of


def as_mappings(batches: Iterable[Mapping[str, Any] | Tensor], words: bool) -> list[Mapping[str, Any]]:
    """The batches as a list of mappings, refused here if there is nothing in them to profile.

    ``words``: the model is one of transformers, whose ``input_ids`` are whole numbers.
    """
    if not isinstance(batches, Iterable):
        raise InputError(
            f"batches={batches!r}: pass a list of mappings of the arguments of the model, or of tensors of token ids"
        )
    listed = [batches] if isinstance(batches, (Mapping, Tensor, numpy.ndarray)) else list(batches)
    if not listed:
        raise InputError("batches is empty: pass at least one batch")
    mappings = [_as_mapping(number, batch, words) for number, batch in enumerate(listed)]
    masks = [batch.get("attention_mask") for batch in mappings]
    if all(isinstance(mask, Tensor) and not mask.any() for mask in masks):
        raise InputError("batches: attention_mask is 0 everywhere, so every token is padding; pass batches with text")
    return mappings


def _as_mapping(number: int, batch: object, words: bool) -> Mapping[str, Any]:
    """One batch as what the model is called with: lists and arrays become tensors, and a text on its own a batch of one."""
    # A list of tensors is what a DataLoader makes of tuples: which of them is what, nobody says.
    texts = isinstance(batch, list) and not any(isinstance(part, Tensor) for part in batch)
    if texts or isinstance(batch, numpy.ndarray):
        batch = {"input_ids": batch}
    if isinstance(batch, Tensor):
        batch = {"input_ids": batch}
    if not isinstance(batch, Mapping):
        raise InputError(
            f"batches[{number}] is a {type(batch).__name__}: pass mappings of the arguments of the model, "
            "{'input_ids': ids, 'attention_mask': mask}, or tensors of token ids"
        )
    made = {}
    for name, value in batch.items():
        if isinstance(value, (list, tuple, numpy.ndarray)) and name != "past_key_values":
            try:
                value = _as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                if name in ("input_ids", "attention_mask"):
                    raise InputError(
                        f"batches[{number}][{name!r}] is a list that makes no tensor ({cause_of(error)}): pad the texts to one "
                        "length, or pass one text a batch"
                    ) from None
        made[name] = value
    ids = made.get("input_ids")
    if isinstance(ids, Tensor):
        made["input_ids"] = ids = _as_ids(number, ids, words)
    if isinstance(ids, Tensor) and ids.ndim == 1:
        length = len(ids)
        made = {
            name: value[None] if isinstance(value, Tensor) and value.ndim == 1 and len(value) == length else value
            for name, value in made.items()
        }
    if not any(isinstance(value, Tensor) for value in made.values()):
        raise InputError(f"batches[{number}] holds no tensor, only {', '.join(map(repr, made)) or 'nothing'}")
    return made


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
        return torch.stack(list(values))
    return torch.as_tensor(values)


def _as_ids(number: int, ids: Tensor, words: bool) -> Tensor:
    """Token ids in a type that an embedding takes; other numbers only where the model need not have words."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        if not words:
            return ids
        raise InputError(
            f"batches[{number}]['input_ids'] is a tensor of {str(ids.dtype).removeprefix('torch.')}: pass token ids, which are "
            "whole numbers; anything else is passed in a mapping, under the name that the model has for it"
        )
    if not ids.numel() or not ids.ndim:
        raise InputError(
            f"batches[{number}]['input_ids'] has shape {tuple(ids.shape)}: pass ids of shape (batch, tokens)"
        )
    return ids if ids.dtype in (torch.int32, torch.int64) else ids.long()
