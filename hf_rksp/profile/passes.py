"""Passes of the batches through the model that leave a few layers at a time to be solved."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_rksp.capture import Layouts, Stack, untouched
from hf_rksp.capture.calling import eager
from hf_rksp.capture.lockstep import BlockWeights
from hf_rksp.profile.gather import Key, States, gather_moments, stream_moments
from hf_rksp.profile.resume import Resume
from hf_rksp.profile.share import Share, sequences
from hf_rksp.spectral.samples import GroupedSamples


def repeated(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    stacks: Sequence[Stack],
    seen: dict[Key, States],
    groups: int,
    moment_memory: float,
    seconds: dict[str, float],
    share: Share,
    layouts: Layouts | None = None,
    strict: bool = True,
) -> Generator[dict[Key, GroupedSamples], None, None]:
    """Samples or moments of as many layers as fit into memory, by a forward pass for each such part.

    ``seen`` takes the layers that only some batches reach, as they turn up.
    """
    done: set[Key] = set()
    layouts = layouts or Layouts(model, stacks)
    own = sum(map(sequences, batches)) / sequences(batches[0])
    while todo := [key for key in seen if key not in done]:
        # Of all processes: they have to part the layers alike.
        rows = [sum(parts) for parts in zip(*share.gather([seen[key].rows * own for key in todo]), strict=True)]
        tokens = dict(zip(todo, rows, strict=True))
        part = _fitting(todo, seen, tokens, max(groups, 1), moment_memory)
        done.update(part)
        # Every pass starts from the same random state, so that models that draw numbers see the same ones.
        with eager(), untouched(model):
            moments, spent = gather_moments(
                model, batches, stacks, part, max(groups, 1), GroupedSamples, share, layouts, strict, seen
            )
        for name, value in spent.items():
            seconds[name] += value
        # In the order of depth: blocks may be registered in another. Nothing here holds on to what is solved and dropped.
        yield {key: moments.pop(key) for key in part if key in moments}


def streamed(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    stacks: Sequence[Stack],
    groups: int,
    moment_memory: float,
    weights: BlockWeights,
    seconds: dict[str, float],
    resume: Resume | None,
    share: Share,
    layouts: Layouts,
) -> Generator[dict[Key, GroupedSamples], None, None]:
    """The same from one forward pass, with one block in memory at a time."""
    waiting: dict[Key, GroupedSamples] = {}
    with eager(), untouched(model):
        for key, moments, spent in stream_moments(
            model, batches, stacks, max(groups, 1), weights, GroupedSamples, resume, share, layouts
        ):
            for name, value in spent.items():
                seconds[name] += value
            waiting[key] = moments
            del moments  # whoever solves them lets go of them
            used = sum(max(groups, 1) * 3 * 8 * min(kept.dim, kept.tokens) ** 2 for kept in waiting.values())
            if (
                used * (len(waiting) + 1) / len(waiting) > moment_memory
                or len(waiting) >= torch.get_num_threads() * share.world
            ):
                yield waiting
                waiting = {}
    if waiting:
        yield waiting


def _fitting(
    todo: Sequence[Key], seen: Mapping[Key, States], tokens: Mapping[Key, float], groups: int, moment_memory: float
) -> list[Key]:
    """As many of the next layers as fit into ``moment_memory`` with their samples or moments; at least one."""
    part: list[Key] = []
    used = 0.0
    for key in todo:
        width, _, itemsize = seen[key]
        few = tokens[key] <= width
        used += 2 * tokens[key] * width * itemsize if few else groups * 3 * width**2 * 8
        if part and used > moment_memory:
            break
        part.append(key)
    return part
