"""Which layers a model has, and what states they see: from one batch of each kind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_rksp.capture import Block, Stack, find_stacks, restore, without
from hf_rksp.capture.calling import forward
from hf_rksp.capture.refusals import none_ran
from hf_rksp.errors import CaptureError
from hf_rksp.profile.gather import Key, States, survey
from hf_rksp.profile.share import Share


def outline(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    blocks: str | Sequence[str] | None,
    share: Share,
    notes: dict[str, str],
) -> tuple[list[Stack], dict[Key, States]]:
    """The stacks that the batches reach, and the states that their layers see, in the order of depth.

    A batch of texts does not reach the tower of images: so one batch of each kind is run, by the names of its entries. What
    is no residual block is left out, unless its list was named with ``blocks``.

    Args:
        model: in evaluation mode, without gradients.
        batches: of this process.
        blocks: paths that the user has named.
        share: of this process; all of them get the same.
        notes: takes what `survey` says.

    Raises:
        CaptureError: nothing was found, or nothing of it is a residual block.
        InputError: ``blocks`` names no list.
    """
    kinds: dict[frozenset[str], Mapping[str, Any]] = {}
    for batch in batches:
        kinds.setdefault(frozenset(name for name, value in batch.items() if value is not None), batch)
    stacks = _stacks(model, list(kinds.values()), blocks, share)
    refused: list[tuple[Block, CaptureError]] = []
    seen: dict[Key, States] = {}
    for batch in kinds.values():
        refuse = (lambda _, block, error: refused.append((block, error))) if blocks is None else None
        found = survey(model, batch, stacks, refuse, notes)
        seen |= {key: states for key, states in found.items() if key not in seen}
    lost = set().union(*share.gather([block.path for block, _ in refused]))
    if lost:
        stacks = without(stacks, [block for stack in stacks for block in stack.blocks if block.path in lost])
        seen = {key: states for key, states in seen.items() if _is_of(stacks, key)}
    for part in share.gather(seen):
        seen |= {key: states for key, states in part.items() if key not in seen}
    if not seen:
        raise refused[0][1] if refused else none_ran(stack.path for stack in stacks)
    if len(kinds) > 1 or share.world > 1:
        places = {stack.path: place for place, stack in enumerate(stacks)}
        looped = {path for path, index in seen if index >= next(s.members for s in stacks if s.path == path)}
        order = {key: number for number, key in enumerate(seen)}
        seen = {
            key: seen[key]
            for key in sorted(seen, key=lambda key: (places[key[0]], order[key] if key[0] in looped else key[1]))
        }
    return stacks, seen


def _stacks(
    model: nn.Module, kinds: Sequence[Mapping[str, Any]], blocks: str | Sequence[str] | None, share: Share
) -> list[Stack]:
    """The stacks that any kind of batch of any process reaches."""
    found: list[Stack] = []
    cause: CaptureError | None = None
    for batch in kinds:
        try:
            new = find_stacks(model, blocks, probe=functools.partial(forward, model, batch))
        except CaptureError as error:
            cause = cause or error
            continue
        found += [stack for stack in new if all(stack.path != known.path for known in found)]
    parts = share.gather({stack.path: stack.left_out for stack in found})
    if not any(parts):
        raise cause or CaptureError("no residual blocks found")
    if len(kinds) == 1 and share.world == 1:
        return found
    stacks = restore(model, parts)
    unchained = {path for stack in found for path in stack.unchained} - {stack.path for stack in stacks}
    return [dataclasses.replace(stacks[0], unchained=tuple(sorted(unchained))), *stacks[1:]]


def _is_of(stacks: Sequence[Stack], key: Key) -> bool:
    return any(stack.holds(block, key) for stack in stacks for block in stack.blocks)
