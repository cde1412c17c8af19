"""Find out by changing the inputs which states of a stack stand for which sequence, and which are padding.

The states at the input of the first block are looked at, before any block mixes the tokens. States that move when something
real changes are tokens. States that move only with what the mask hides are padding. States that move with neither are the
model's own. Meanwhile every block hands on the state that it is given: else attention would carry real tokens into the
padding in front of the next stack. Every sequence has a binary code: with the sequences whose code has a bit, and then with the
others, changed at a time, two passes per bit say for each state which sequence moves it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.changes import all_of, another, but_the_first
from hf_rksp.capture.contents import Content, sequences_of
from hf_rksp.capture.fronts import Run, first_states, moved_states
from hf_rksp.errors import CaptureError


@dataclass
class Seen:
    """What a probe saw of one stack.

    Attributes:
        lead: shape of its states without their width. Further tensors have this shape.
        zero: whether it is zero in all its numbers, whatever the weights are.
        moved: by content, whether a state moves with what is real in it.
        owner: by space of sequences ("" for those of the batch, else the name of a content), the sequence that moves a state;
            -1 where none does.
        mixed: whether a state moves with several sequences.
        hidden: whether it moves with what is hidden by the masks; ``None`` if nothing is.
        attended: whether a state is attended to, by the mask that the model hands to the first block; ``None`` without one.
        causal: whether what stands in front of the blocks only looks back, as n-grams do, so that a state that moves with padding
            on the right is padding.
    """

    lead: tuple[int, ...]
    zero: Tensor
    moved: dict[str, Tensor] = field(default_factory=dict)
    owner: dict[str, Tensor] = field(default_factory=dict)
    mixed: Tensor | None = None
    hidden: Tensor | None = None
    attended: Tensor | None = None
    causal: bool = False

    @property
    def by_any(self) -> Tensor:
        """Whether each state moves with anything real."""
        return torch.stack(list(self.moved.values())).any(0)


def probe(
    run: Run,
    batch: Mapping[str, Any],
    contents: Sequence[Content],
    stacks: Sequence[Stack],
    config: object = None,
    stop: bool = True,
    blank: bool = False,
) -> dict[str, Seen | CaptureError]:
    """What moves the states in front of each stack, by its path, or why that cannot be told; without stacks that do not run.

    The model has to be in evaluation mode, without gradients, with a random state that may be used up: see
    `hf_rksp.capture.untouched`.

    Args:
        run: one forward pass.
        batch, contents: see `hf_rksp.capture.contents.contents_of`.
        stacks: whose first blocks are looked at.
        config: of the model: it names the ids that stand for images and the like.
        stop: end each forward pass at the last first block.
        blank: leave images that are zero everywhere as they are: some models drop them.
    """
    refused: dict[str, CaptureError] = {}
    while True:
        try:
            return _look(run, batch, contents, stacks, config, stop, blank, refused) | refused
        except _Elusive as found:
            refused |= found.causes


class _Elusive(Exception):
    """The states of these stacks cannot be compared from one pass to the next."""

    def __init__(self, paths: Collection[str], cause: str) -> None:
        super().__init__(cause)
        self.causes = {path: CaptureError(cause.format(path)) for path in paths}


def _look(
    run: Run,
    batch: Mapping[str, Any],
    contents: Sequence[Content],
    stacks: Sequence[Stack],
    config: object,
    stop: bool,
    blank: bool,
    skip: Collection[str],
) -> dict[str, Seen]:
    """`probe` without the stacks to ``skip``."""
    spaces = {content.name: "" if content.sequences == sequences_of(contents) else content.name for content in contents}
    masks: dict[str, Tensor] = {}
    base, again = (first_states(run, batch, stacks, stop, masks=masks, skip=skip) for _ in range(2))
    seen = {path: Seen(tuple(x.shape[:-1]), (x == 0).all(-1), attended=masks.get(path)) for path, x in base.items()}
    differing = [
        path
        for path, x in base.items()
        if path not in again or again[path].shape != x.shape or moved_states(x, again[path]).any()
    ]
    if differing:
        raise _Elusive(
            differing,
            "the states of {} differ between two passes over the same batch, so it cannot be told which of them are padding: pass "
            "batches of one kind of input without padding",
        )

    def changed(
        which: Callable[[Content], Tensor | None],
        hidden: bool = False,
        blocks: bool = False,
        value: float | None = None,
    ) -> dict[str, Tensor]:
        """Whether each state moves if the sequences that ``which`` names (for each content) are changed.

        ``hidden``: what the masks hide, instead of what is real. ``blocks``: in the model as it is, with its blocks at work.
        ``value``: to this number.
        """
        given, before = dict(batch), whole if blocks else base
        for content in contents:
            sequences = which(content)
            if sequences is not None:
                given[content.name] = another(content, sequences, hidden, config, value)
                if blank and content.blank is not None:
                    given[content.name][content.blank] = 0
        found = first_states(run, given, stacks, stop, blocks, skip=skip)
        other = [path for path, x in before.items() if path not in found or found[path].shape != x.shape]
        if other:
            raise _Elusive(
                other,
                "the number of states of {} changes with the contents of a batch, so it cannot be told which of them are padding: "
                "pass batches of one kind of input without padding",
            )
        return {path: moved_states(x, found[path]) for path, x in before.items()}

    masked = any(content.real is not None for content in contents)
    for content in contents:
        moved = changed(functools.partial(_all_of_one, content.name))
        for path in base:
            seen[path].moved[content.name] = moved[path]
    for space in dict.fromkeys(spaces.values()):
        members = [content for content in contents if spaces[content.name] == space]
        for path, (owner, mixed) in _decode(changed, members).items():
            each = seen[path]
            each.owner[space] = owner
            if len(members) == 1:  # one change may leave a state as it is by chance, behind a ReLU
                each.moved[members[0].name] |= owner >= 0
            each.mixed = mixed if each.mixed is None else each.mixed | mixed
    if masked:
        everywhere = changed(all_of, hidden=True)
        for path, by_hidden in everywhere.items():
            seen[path].hidden = by_hidden
        for path in _looking_back(run, batch, contents, stacks, config, base, seen, stop):
            seen[path].causal = True
    floating = [content for content in contents if not content.discrete]
    partly = {path: each for path, each in seen.items() if floating and not bool(each.by_any.all())}
    if partly:
        whole = first_states(run, batch, stacks, stop, True, skip=skip)
        hidden = changed(all_of, True, True) if masked else {}
        # Images may reach a text through learnt queries, which only blocks let look at them, and through many maps, behind which a
        # difference is below rounding: NaN is not.
        by_nan = functools.partial(changed, blocks=True, value=math.nan)
        for content in floating:
            space = spaces[content.name]
            reached = by_nan(functools.partial(_all_of_one, content.name))
            owners = _decode(by_nan, [content]) if any(bool(reached[path].any()) for path in partly) else {}
            for path, each in partly.items():
                resting = ~each.by_any
                if path in hidden:
                    resting &= ~hidden[path]
                each.moved[content.name] = each.moved[content.name] | (reached[path] & resting)
                if owners and bool((each.owner[space] < 0).all()):
                    owner, mixed = owners[path]
                    each.owner[space] = torch.where(resting, owner, -1)
                    each.mixed = mixed & resting if each.mixed is None else each.mixed | (mixed & resting)
    return seen


def _all_of_one(name: str, content: Content) -> Tensor | None:
    """All sequences of the content ``name``; ``None`` for another."""
    return all_of(content) if content.name == name else None


def _looking_back(
    run: Run,
    batch: Mapping[str, Any],
    contents: Sequence[Content],
    stacks: Sequence[Stack],
    config: object,
    base: Mapping[str, Tensor],
    seen: Mapping[str, Seen],
    stop: bool,
) -> list[str]:
    """The stacks in front of which texts padded on the right are mixed with what stands before alone.

    There, the first state of a text does not move with the words behind the first.
    """
    texts = [c for c in contents if c.discrete and c.real is not None and c.real.ndim == 2 and bool(c.real[:, 0].all())]
    both = [
        path
        for path, each in seen.items()
        if texts and len(each.lead) == 2 and each.hidden is not None and bool((each.by_any & each.hidden).any())
    ]
    if not both or len(texts) < len(contents):
        return []
    later = {c.name: another(but_the_first(c), all_of(c), False, config, None) for c in texts}
    found = first_states(run, {**batch, **later}, stacks, stop, skip=[s.path for s in stacks if s.path not in both])
    looking = []
    for path in both:
        if path in found and found[path].shape == base[path].shape:
            first = seen[path].by_any.long().argmax(1, keepdim=True)
            if not bool(moved_states(base[path], found[path]).gather(1, first).any()):
                looking.append(path)
    return looking


def _decode(changed: Callable[..., dict[str, Tensor]], members: Sequence[Content]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each stack: the sequence that moves each state (-1: none), and whether several do."""
    names = {content.name for content in members}
    count = members[0].sequences
    numbers = torch.arange(count)
    owner: dict[str, Tensor] = {}
    moved: dict[str, Tensor] = {}
    mixed: dict[str, Tensor] = {}
    for bit in range(max(1, (count - 1).bit_length())):
        with_bit = numbers >> bit & 1 == 1
        sides = []
        for chosen in (with_bit, ~with_bit):
            sides.append(changed(lambda c, chosen=chosen: chosen if c.name in names else None))
        for path, one in sides[0].items():
            other = sides[1][path]
            owner[path] = owner.get(path, 0) + (one.long() << bit)
            moved[path] = moved.get(path, torch.zeros_like(one)) | one | other
            mixed[path] = mixed.get(path, torch.zeros_like(one)) | (one & other)
    return {path: (torch.where(moved[path], owner[path], -1), mixed[path]) for path in owner}
