"""Labelled texts for a classification: rows of a table or a dataset -> padded sequences with the number of their class."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hf_rksp.errors import InputError
from hf_rksp.inputs.text import BUILTIN, TextSource, describe, rows_of

#: Most rows that are read; the classes are those among them.
_ROWS = 100_000
#: More different labels are an index or a number, and no classes.
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Labelled:
    """Texts with the numbers of their classes."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: int


def read_labelled(source: TextSource, column: str) -> Labelled:
    """The rows of a table or a dataset.

    Args:
        source: .parquet, .jsonl, .csv, a folder with .parquet, or a dataset on the Hub.
        column: with the labels. Numbers and names are numbered in their order: 1 to 5 are the classes 0 to 4.

    Raises:
        InputError: there is no such column, no text, no second class, or a label that is no class.
    """
    if source.name == BUILTIN:
        raise InputError(
            f"labels={column!r}: the built-in text has no labels; pass --text with a table (.parquet, .jsonl, .csv) or a dataset"
        )
    if column == source.column:
        raise InputError(f"labels={column!r} is the column of the texts; pass another one, or --text-column")
    # All of them, up to a limit: a table may be sorted by its classes.
    rows = list(islice(rows_of(source, (source.column, column)), _ROWS))
    values = [row[column] for row in rows]
    if wrong := [value for value in values if value is None or isinstance(value, (float, list, dict))]:
        raise InputError(
            f"labels={column!r}: {wrong[0]!r} is no class ({len(wrong)} of {len(rows)} rows have such a label); pass a column of "
            "whole numbers or names"
        )
    if empty := sum(row[source.column] is None for row in rows):
        raise InputError(f"column={source.column!r}: {empty} of {len(rows)} rows have no text; leave them out")
    numbers = all(isinstance(value, int) for value in values)
    if numbers and min(values, default=0) < 0:
        raise InputError(f"labels={column!r}: {min(values)} is no class; pass a split that is labelled (--text-split)")
    names = sorted(set(values), key=None if numbers else str)
    if not 2 <= len(names) <= _MOST_CLASSES:
        limit = "at least two" if len(names) < 2 else f"at most {_MOST_CLASSES}"
        some = "the first " if len(rows) == _ROWS else ""
        raise InputError(f"labels={column!r}: {len(names)} class(es) in {some}{len(rows)} rows; pass data with {limit}")
    places = {value: place for place, value in enumerate(names)}
    return Labelled(tuple(str(row[source.column]) for row in rows), tuple(places[v] for v in values), len(names))


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
    info = describe(source, ids, int(mask.sum())) | {"classes": data.classes}
    return LabelledSequences(ids, mask, torch.tensor([data.labels[place] for place in order]), info)
