"""Batches of the two tasks, a pure function of the seed and the step."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Where batches come from.

    Attributes:
        vocabulary: number of tokens.
        length: of a sequence, if the task fixes it.
    """

    vocabulary: int
    length: int | None


TASKS = {"text": Task(256, None), "recall": Task(32, 9)}
#: The loss of predicting the frequencies of the labels, in nats. Rows are read without the text; a test computes it from the text.
TRIVIAL = {"recall": math.log(16), "text": 3.1935}


def batch(task: str, seed: int, step: int, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, shape ``(size, length)`` each; labels are not shifted, and -100 where nothing is asked."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)
    return recall(generator, size) if task == "recall" else text(generator, size, length)


def recall(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """``[k1 v1 k2 v2 0 0 0 query answer]``, keys 1 to 15, values 16 to 31; only the answer is asked."""
    keys = torch.stack([torch.randperm(15, generator=generator)[:2] + 1 for _ in range(size)])
    values = torch.randint(16, 32, (size, 2), generator=generator)
    ids = torch.zeros(size, 9, dtype=torch.long)
    ids[:, 0:4:2], ids[:, 1:4:2] = keys, values
    rows, query = torch.arange(size), torch.randint(0, 2, (size,), generator=generator)
    ids[:, -2], ids[:, -1] = keys[rows, query], values[rows, query]
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return ids, labels


def text(generator: torch.Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Passages of WikiText-103 in bytes, at random places; the next byte is asked."""
    data = wikitext()
    starts = torch.randint(0, len(data) - length, (size, 1), generator=generator)
    ids = data[starts + torch.arange(length)].long()
    return ids, ids


def wikitext_file() -> Path:
    """The validation split of WikiText-103 under HF_RKSP_DATA.

    Raises:
        ValueError: the variable is not set, or the file is not there.
    """
    file = Path(os.environ.get("HF_RKSP_DATA", "")) / "wikitext/wikitext-103-v1/validation-00000-of-00001.parquet"
    if "HF_RKSP_DATA" not in os.environ or not file.is_file():
        raise ValueError(
            f"HF_RKSP_DATA={os.environ.get('HF_RKSP_DATA')!r}: the text task reads WikiText-103; set it to the folder that has "
            "wikitext/wikitext-103-v1/validation-00000-of-00001.parquet"
        )
    return file


@functools.cache
def wikitext() -> Tensor:
    """The bytes of the validation split."""
    rows = load_dataset("parquet", data_files=str(wikitext_file()), split="train")["text"]
    return torch.frombuffer(bytearray("".join(rows).encode()), dtype=torch.uint8)


def trivial_loss(task: str) -> float:
    """The loss of a model that knows the frequencies of the labels and nothing else, in nats."""
    return TRIVIAL[task]
