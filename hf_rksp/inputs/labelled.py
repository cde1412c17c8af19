"""Labelled texts for a classification: rows of a table or a dataset -> padded sequences with the number of their class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hf_rksp.errors import InputError
from hf_rksp.inputs.text import BUILTIN, TextSource, rows_of

#: Rows that are read: the classes are those among them, unless the dataset names its own.
_ROWS = 10_000


@dataclass(frozen=True)
class Labelled:
    """Texts with the numbers of their classes."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: int


def read_labelled(source: TextSource, column: str) -> Labelled:
    """The first rows of a table or a dataset.

    Args:
        source: .parquet, .jsonl, .csv, a folder with .parquet, or a dataset on the Hub.
        column: with the labels: whole numbers from 0, or any other values, which are numbered in their order.

    Raises:
        InputError: there is no such column, no second class, or a label that is no class.
    """
    if source.name == BUILTIN:
        raise InputError(
            f"labels={column!r}: the built-in text has no labels; pass --text with a table (.parquet, .jsonl, .csv) or a dataset"
        )
    rows = list(islice(rows_of(source, (source.column, column)), _ROWS))
    values = [row[column] for row in rows]
    wrong = [value for value in values if value is None or isinstance(value, (float, list, dict))]
    if wrong:
        raise InputError(
            f"labels={column!r}: {wrong[0]!r} is no class ({len(wrong)} of {len(rows)} rows have such a label); pass a column of "
            "whole numbers or names"
        )
    numbers = all(isinstance(value, int) for value in values)
    if numbers and min(values, default=0) < 0:
        raise InputError(f"labels={column!r}: {min(values)} is no class; pass a split that is labelled (--text-split)")
    names = sorted(set(values), key=str)
    labels = [int(value) for value in values] if numbers else [names.index(value) for value in values]
    classes = max(labels, default=0) + 1
    if len(names) < 2:
        raise InputError(f"labels={column!r}: {len(names)} class among {len(rows)} rows; pass data with at least two")
    return Labelled(tuple(str(row[source.column]) for row in rows), tuple(labels), classes)


@dataclass(frozen=True)
class LabelledSequences:
    """Padded sequences, shape ``(n, length)`` each, their classes, shape ``(n,)``, and what to say of them in the report."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    info: dict[str, Any]

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """Batches with ``attention_mask`` and ``labels``."""
        parts = zip(self.ids.split(size), self.mask.split(size), self.labels.split(size), strict=True)
        return [{"input_ids": ids, "attention_mask": mask, "labels": labels} for ids, mask, labels in parts]


def cut_labelled(
    data: Labelled, tokenizer: Any, length: int, count: int, seed: int, source: TextSource
) -> LabelledSequences:
    """``count`` texts without order, cut to ``length`` tokens and padded to the longest of them.

    Raises:
        InputError: there are fewer texts, or the tokenizer has no token to pad with.
    """
    if len(data.texts) < count:
        raise InputError(
            f"text={source.name!r} has {len(data.texts)} rows, and {count} are measured: pass more, or a smaller --measured"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError("the tokenizer has no token to pad with; pass another --tokenizer")
    order = torch.randperm(len(data.texts), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    cut = tokenizer([data.texts[place] for place in order], truncation=True, max_length=length, padding=True)
    ids, mask = torch.tensor(cut["input_ids"]), torch.tensor(cut["attention_mask"])
    info = {
        "source": source.name,
        "config": source.config,
        "split": None if source.path.is_file() else source.split,
        "sequences": len(ids),
        "sequence_length": ids.shape[1],
        "tokens": int(mask.sum()),
        "distinct_tokens": int(ids.unique().numel()),
        "classes": data.classes,
        "sha256": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
    }
    return LabelledSequences(ids, mask, torch.tensor([data.labels[place] for place in order]), info)
