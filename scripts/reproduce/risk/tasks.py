"""Batches of the two tasks, a pure function of the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.reproduce.data import passages, recall, wikitext


@dataclass(frozen=True)
class Task:
    """What a task asks of a network.

    Attributes:
        vocabulary: number of tokens.
        length: of a sequence, if the task fixes it.
        trivial: the loss of a model that knows the frequencies of the labels and nothing else, in nats.
    """

    vocabulary: int
    length: int | None
    trivial: float


#: Rows are read without the text: its trivial loss is a number, which a test computes from the text.
TASKS = {"text": Task(256, None, 3.1935), "recall": Task(32, 9, math.log(16)), "cifar10": Task(0, 65, math.log(10))}


def objective_of(configuration: Mapping[str, Any]) -> str:
    """What is learnt, as `hf_rksp.risk.plan` names it."""
    return str(configuration.get("objective", "classification" if configuration["task"] == "cifar10" else "causal"))


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one batch."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)


def batch(task: str, seed: int, step: int, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, shape ``(size, length)`` each; labels are not shifted, and -100 where nothing is asked.

    "text" is bytes of the validation split of WikiText-103, and the next byte is asked.
    """
    generator = generator_of(seed, step)
    if task == "recall":
        return recall(generator, size)
    ids = passages(wikitext("validation"), generator, size, length)
    return ids, ids
