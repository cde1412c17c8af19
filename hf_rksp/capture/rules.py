"""Rules that turn the contents of a batch and the shape of states into a `Layout`.

A rule says how one stack reads every batch. Most follow from sizes alone (`by_sizes`); the others are learnt from a probe
(`hf_rksp.capture.probe`) and then hold for batches of other sizes too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_rksp.capture.contents import Content
from hf_rksp.capture.layout import Layout

#: ``(name of a reducer of the model, what it is called with)``: how many frames a number of samples becomes.
Reducer = Callable[[Tensor, int], Tensor | None]
Shape = tuple[int, ...]


class Rule(Protocol):
    """How the states of one stack are read."""

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """The layout of states of shape ``(*lead, d)``; ``None`` if the rule does not fit these sizes."""


def named(contents: Sequence[Content], name: str) -> Content | None:
    """The content of that name."""
    return next((content for content in contents if content.name == name), None)


@dataclass(frozen=True)
class Grid:
    """There is one state for each entry of a content, perhaps in another order of axes, perhaps in several streams.

    Attributes:
        name: of the content.
        order: "rows first", "tokens first", or ``None``: as the sizes say, which is nothing if they are equal.
        prepended: states that PEFT's prompt tuning has put before each sequence: they are no tokens.
    """

    name: str
    order: str | None = None
    prepended: int = 0

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """See `Rule`."""
        content = named(contents, self.name)
        if content is None:
            return None
        real, grid = content.real, self._grid(content, lead)
        if grid is None:
            return None
        if real is not None and tuple(real.shape) != grid:
            if tuple(real.shape) != lead:
                return None
            grid = lead
        if self.prepended and len(grid) == 2 and grid != lead and (grid[0], grid[1] + self.prepended) == lead:
            full = torch.ones(grid, dtype=torch.bool, device=content.value.device) if real is None else real
            real, grid = torch.nn.functional.pad(full, (self.prepended, 0)), lead
        found = self._arranged(grid, lead)
        if found is None:
            return None
        if len(grid) == 3:  # choices: each is a row, and belongs to its question
            owner = torch.arange(grid[0], device=content.value.device).repeat_interleave(grid[1])
            mask = None if real is None else real.reshape(grid[0] * grid[1], grid[2])
            return Layout(content.sequences, mask, owner)
        axes, streams = found
        return Layout(content.sequences, real, None, axes, 1, streams)

    @staticmethod
    def _grid(content: Content, lead: Shape) -> Shape | None:
        """The axes of the content that states stand for."""
        shape = tuple(content.value.shape)
        if content.discrete and len(shape) in (2, 3):
            codes = len(shape) == 3 and (shape[:2] == lead or (content.real is not None and content.real.ndim == 2))
            return shape[:2] if codes else shape
        return None if content.real is None or content.real.ndim != 2 else tuple(content.real.shape)

    def _arranged(self, grid: Shape, lead: Shape) -> tuple[tuple[int, ...] | None, int] | None:
        """The axes of the states in the order of the grid, streams last; ``None`` if the sizes do not say."""
        if len(grid) == 3:
            folded = (grid[0] * grid[1], grid[2])
            return (None, 0) if lead == folded and folded[0] != folded[1] else None
        square = grid[0] == grid[1]
        if lead == grid and (self.order == "rows first" if square else self.order != "tokens first"):
            return None, 0
        if lead == grid[::-1] and (self.order == "tokens first" if square else self.order != "rows first"):
            return (1, 0), 0
        if len(lead) > 2 and grid[0] != grid[1]:
            places = [(a, b) for a, b in itertools.pairwise(range(len(lead))) if (lead[a], lead[b]) == grid]
            if len(places) == 1 and lead.count(grid[1]) == 1:  # else there is a state for each pair of tokens
                a, b = places[0]
                rest = tuple(axis for axis in range(len(lead)) if axis not in (a, b))
                return (a, b, *rest), len(rest)
        return None


@dataclass(frozen=True)
class Everything:
    """Every state counts, and the first axis holds the sequences, or an equal number of rows of each.

    Attributes:
        name: of the content that says how many sequences there are.
        learnt: the states are the model's own, and what is padding in the content does not matter.
    """

    name: str
    learnt: bool = False

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """See `Rule`."""
        content = named(contents, self.name)
        if content is None or (content.real is not None and not self.learnt):
            return None
        if len(lead) < 2 or lead[0] % content.sequences:
            return None
        if content.blank is not None and int((~content.blank).sum()) == lead[0]:
            return None  # the model may have dropped the images that are blank: then rows are images of some sequences
        each = lead[0] // content.sequences
        owner = None
        if each > 1:
            owner = torch.arange(content.sequences, device=content.value.device).repeat_interleave(each)
        return Layout(content.sequences, None, owner)


@dataclass(frozen=True)
class Frames:
    """States are frames behind convolutions; the model itself says how many samples make one."""

    name: str
    reducer: Reducer

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """See `Rule`."""
        content = named(contents, self.name)
        if content is None or content.real is None or len(lead) != 2 or content.real.ndim != 2:
            return None
        if lead[0] != content.real.shape[0]:
            return None
        mask = self.reducer(content.real, lead[1])
        return None if mask is None else Layout(content.sequences, mask)


@dataclass(frozen=True)
class Parts:
    """Each row is made of several contents one after the other, and of states of the model's own.

    Attributes:
        parts: content and the column at which it begins, counted from the front.
        before: whether each column before the first part counts.
        after: the same behind the last part.
        open: the model pads up to a length of its own: whatever comes behind does not count.
    """

    parts: tuple[tuple[str, int], ...]
    before: tuple[bool, ...]
    after: tuple[bool, ...]
    open: bool

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """See `Rule`."""
        if len(lead) != 2:
            return None
        pieces, width, sequences = [], 0, 0
        for name, _ in self.parts:
            content = named(contents, name)
            if content is None or content.value.shape[0] != lead[0] or content.value.ndim < 2:
                return None
            shape = content.value.shape[:2]
            if content.real is not None and content.real.shape != shape:
                return None
            whole = torch.ones(shape, dtype=torch.bool, device=content.value.device)
            pieces.append(whole if content.real is None else content.real)
            width, sequences = width + shape[1], content.sequences
        rest = lead[1] - width - len(self.before)
        if rest != len(self.after) and not (self.open and rest >= 0):
            return None
        after = self.after if rest == len(self.after) else (False,) * rest
        sides = [
            torch.tensor(side, dtype=torch.bool, device=pieces[0].device).expand(lead[0], -1)
            for side in (self.before, after)
        ]
        return Layout(sequences, torch.cat([sides[0], *pieces, sides[1]], 1))


@dataclass(frozen=True)
class Entries:
    """There is one state for each entry of a content along its first axis: patches of all images in one tensor."""

    name: str

    def layout(self, contents: Sequence[Content], lead: Shape) -> Layout | None:
        """See `Rule`."""
        content = named(contents, self.name)
        if content is None or content.real is not None or lead != tuple(content.value.shape[:1]):
            return None
        return Layout(content.sequences, None, content.sequence, None, 1, 0)


def by_sizes(contents: Sequence[Content], lead: Shape, prepended: int, reducer: Reducer | None) -> Rule | None:
    """The rule that the sizes alone leave no doubt of; ``None`` if they do.

    Args:
        contents: those that can reach the stack.
        lead: shape of the states without their width.
        prepended: see `Grid`.
        reducer: the model's own way from samples to frames.
    """
    if len(contents) != 1 or len(lead) < 2:
        return None
    content = contents[0]
    rules: list[Rule] = [Grid(content.name, None, prepended)]
    if not content.discrete:
        if content.real is None and lead[0] == content.sequences and lead[0] not in lead[1:]:
            rules.append(Everything(content.name))
        if reducer is not None:
            rules.append(Frames(content.name, reducer))
    return next((rule for rule in rules if rule.layout(contents, lead) is not None), None)
