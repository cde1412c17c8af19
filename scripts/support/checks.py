"""What a profile is held to: the model's own hidden states, and the number of tokens that there are."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from support.counts import compare_tokens
from support.inputs import Feed
from support.states import compare_states


def compare(row: dict[str, Any], model: nn.Module, feed: Feed, profile: Any) -> str | None:
    """The first thing in which the profile is wrong; what was seen goes into ``row``."""
    stacks: dict[str, list[Any]] = {}
    for layer in profile.layers:
        stacks.setdefault(layer.stack, []).append(layer)
    row["tokens"] = {stack: sorted({layer.tokens for layer in layers}) for stack, layers in stacks.items()}
    row["states"] = {}
    faults = []
    filled: dict[tuple[int, ...], int] = {}
    for stack, layers in stacks.items():
        paths = [_path(model, layer.path) for layer in layers]
        own = _own(profile, feed, stack)
        fault = compare_states(row, model, feed, stack, paths) or compare_tokens(
            row, model, feed, stack, layers, paths, filled, own
        )
        if fault:
            faults.append(fault)
    return faults[0] if faults else None


def _own(profile: Any, feed: Feed, stack: str) -> int:
    """The states of a stack that the profile names as the model's own, in all batches."""
    notes = " ".join(profile.notes)
    found = re.search(rf"(\d+) states per sequence of {re.escape(stack)} are the model's own", notes)
    return int(found[1]) * feed.sequences * len(feed.batches) if found else 0


def _path(model: nn.Module, path: str) -> str:
    """``path`` without what is not part of the module's own: the number of a run."""
    known = dict(model.named_modules())
    while path and path not in known:
        path = path[:-1]
    return path
