"""Data that several experiments read: WikiText-103 in bytes, and associative recall."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Literal

import torch
from datasets import load_dataset
from torch import Tensor

Split = Literal["validation", "test"]


def wikitext_file(split: Split) -> Path:
    """A split of WikiText-103 under HF_RKSP_DATA.

    Raises:
        ValueError: the variable is not set, or the file is not there.
    """
    name = f"wikitext/wikitext-103-v1/{split}-00000-of-00001.parquet"
    file = Path(os.environ.get("HF_RKSP_DATA", "")) / name
    if "HF_RKSP_DATA" not in os.environ or not file.is_file():
        raise ValueError(
            f"HF_RKSP_DATA={os.environ.get('HF_RKSP_DATA')!r}: the text tasks read WikiText-103; set it to the folder that has "
            f"{name}"
        )
    return file


@functools.cache
def wikitext(split: Split) -> Tensor:
    """The bytes of a split, shape ``(bytes,)`` uint8."""
    rows = load_dataset("parquet", data_files=str(wikitext_file(split)), split="train")["text"]
    return torch.frombuffer(bytearray("".join(rows).encode()), dtype=torch.uint8)


def passages(data: Tensor, generator: torch.Generator, size: int, length: int) -> Tensor:
    """Passages of ``data`` at random places, shape ``(size, length)`` int64."""
    starts = torch.randint(0, len(data) - length, (size, 1), generator=generator)
    return data[starts + torch.arange(length)].long()


def recall(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """``[k1 v1 k2 v2 0 0 0 query answer]``; the loss is on the answer alone, which is asked at the position of the query.

    Keys are 1 to 15, values 16 to 31: chance is ln 16 = 2.77.

    Returns:
        Ids and labels, shape ``(size, 9)`` each.
    """
    keys = torch.stack([torch.randperm(15, generator=generator)[:2] + 1 for _ in range(size)])
    values = torch.randint(16, 32, (size, 2), generator=generator)
    ids = torch.zeros(size, 9, dtype=torch.long)
    ids[:, 0:4:2], ids[:, 1:4:2] = keys, values
    rows, query = torch.arange(size), torch.randint(0, 2, (size,), generator=generator)
    ids[:, -2], ids[:, -1] = keys[rows, query], values[rows, query]
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return ids, labels
