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
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.calling import first_state, output_state, own_mask
from hf_rksp.capture.contents import Content, sequences_of
from hf_rksp.errors import CaptureError

#: Runs the model once on a batch.
Run = Callable[[Mapping[str, Any]], object]
#: Numbers in a configuration that are ids of the vocabulary; those of the second kind mark where something else is put in.
_ID = re.compile(r"(^|_)(token_(id|index|ids)|token)$|_id$|_index$")
_PLACE = re.compile("image|video|audio|vision|speech|frame|patch|img|point|box|seg|sound|placeholder")


@dataclass
class Seen:
    """What a probe saw of one stack.

    Attributes:
        lead: shape of its states without their width. Further tensors have this shape.
        moved: by content, whether a state moves with what is real in it.
        owner: by space of sequences ("" for those of the batch, else the name of a content), the sequence that moves a state;
            -1 where none does.
        mixed: whether a state moves with several sequences.
        hidden: whether it moves with what is hidden by the masks; ``None`` if nothing is.
        attended: whether a state is attended to, by the mask that the model hands to the first block; ``None`` without one.
    """

    lead: tuple[int, ...]
    moved: dict[str, Tensor] = field(default_factory=dict)
    owner: dict[str, Tensor] = field(default_factory=dict)
    mixed: Tensor | None = None
    hidden: Tensor | None = None
    attended: Tensor | None = None

    @property
    def all_moved(self) -> bool:
        """Whether every state moves with something real."""
        return bool(torch.stack(list(self.moved.values())).any(0).all())


class _Enough(BaseException):
    """Every stack has been reached: the rest of the forward pass is not needed."""


def probe(
    run: Run,
    batch: Mapping[str, Any],
    contents: Sequence[Content],
    stacks: Sequence[Stack],
    config: object = None,
    stop: bool = True,
    blank: bool = False,
) -> dict[str, Seen]:
    """What moves the states in front of each stack, by its path; stacks that do not run are not in it.

    The model has to be in evaluation mode, without gradients, with a random state that may be used up: see
    `hf_rksp.capture.untouched`.

    Args:
        run: one forward pass.
        batch, contents: see `hf_rksp.capture.contents.contents_of`.
        stacks: whose first blocks are looked at.
        config: of the model: it names the ids that stand for images and the like.
        stop: end each forward pass at the last first block.
        blank: leave images that are zero everywhere as they are: some models drop them.

    Raises:
        CaptureError: two equal passes differ, or the states change their shape with the contents.
    """
    spaces = {content.name: "" if content.sequences == sequences_of(contents) else content.name for content in contents}
    masks: dict[str, Tensor] = {}
    base, again = (first_states(run, batch, stacks, stop, masks=masks) for _ in range(2))
    seen = {path: Seen(tuple(x.shape[:-1]), attended=masks.get(path)) for path, x in base.items()}
    for path, x in base.items():
        if path not in again or again[path].shape != x.shape or _moved(x, again[path]).any():
            raise CaptureError(
                f"the states of {path} differ between two passes over the same batch, so it cannot be told which of them are "
                "padding: pass batches of one kind of input without padding"
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
                given[content.name] = _another(content, sequences, hidden, config, value)
                if blank and content.blank is not None:
                    given[content.name][content.blank] = 0
        found = first_states(run, given, stacks, stop, blocks)
        if any(path not in found or found[path].shape != x.shape for path, x in before.items()):
            raise CaptureError(
                "the number of states changes with the contents of a batch, so it cannot be told which of them are padding: pass "
                "batches of one kind of input without padding"
            )
        return {path: _moved(x, found[path]) for path, x in before.items()}

    masked = any(content.real is not None for content in contents)
    for content in contents:
        moved = changed(lambda c, own=content: all_of(c) if c.name == own.name else None)
        for path in base:
            seen[path].moved[content.name] = moved[path]
    for space in dict.fromkeys(spaces.values()):
        members = [content for content in contents if spaces[content.name] == space]
        for path, (owner, mixed) in _decode(changed, members).items():
            seen[path].owner[space] = owner
            seen[path].mixed = mixed if seen[path].mixed is None else seen[path].mixed | mixed
    if masked:
        everywhere = changed(all_of, hidden=True)
        for path, moved in everywhere.items():
            seen[path].hidden = moved
    floating = [content for content in contents if not content.discrete]
    partly = {path: each for path, each in seen.items() if floating and not each.all_moved}
    if partly:
        whole = first_states(run, batch, stacks, stop, True)
        hidden = changed(all_of, True, True) if masked else {}
        # Images may reach a text through learnt queries, which only blocks let look at them, and through many maps, behind which a
        # difference is below rounding: NaN is not.
        by_nan = functools.partial(changed, blocks=True, value=math.nan)
        for content in floating:
            space = spaces[content.name]
            reached = by_nan(lambda c, own=content: all_of(c) if c.name == own.name else None)
            owners = _decode(by_nan, [content]) if any(bool(reached[path].any()) for path in partly) else {}
            for path, each in partly.items():
                resting = ~torch.stack(list(each.moved.values())).any(0)
                if path in hidden:
                    resting &= ~hidden[path]
                each.moved[content.name] = each.moved[content.name] | (reached[path] & resting)
                if owners and bool((each.owner[space] < 0).all()):
                    owner, mixed = owners[path]
                    each.owner[space] = torch.where(resting, owner, -1)
                    each.mixed = mixed & resting if each.mixed is None else each.mixed | (mixed & resting)
    return seen


def all_of(content: Content) -> Tensor:
    """All sequences of a content."""
    return torch.ones(content.sequences, dtype=torch.bool)


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


def first_states(
    run: Run,
    batch: Mapping[str, Any],
    stacks: Sequence[Stack],
    stop: bool = True,
    blocks: bool = False,
    masks: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The state in front of the first block of each stack; unless ``blocks`` are at work, each hands on what it is given.

    ``masks`` takes which states are attended to, for each stack whose first block is told.
    """
    found: dict[str, Tensor] = {}
    firsts = {stack.blocks[0].module: stack for stack in stacks if stack.blocks}

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        stack, x = firsts[module], first_state(args, kwargs)
        if x is not None and stack.path not in found:
            found[stack.path] = x.detach().clone()
            told = None if masks is None else own_mask(module, args, kwargs, x.shape[:-1])
            if masks is not None and told is not None:
                masks[stack.path] = told
        if stop and len(found) == len(firsts):
            raise _Enough

    handles = [module.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for module in firsts]
    for module in {block.module for stack in stacks for block in stack.blocks if not blocks}:
        handles += _handing_on(module)
    torch.manual_seed(0)  # a model that draws its own mask draws the same one in each pass
    try:
        run(batch)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _handing_on(module: nn.Module) -> list[Any]:
    """Hooks that let a block return the state that it was given."""
    given: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = first_state(args, kwargs)
        given.append(None if x is None else x.clone())  # some blocks write into it

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        x = given.pop()
        if x is None or output_state(output, x) is None:
            return None
        if isinstance(output, Tensor):
            return x
        if isinstance(output, dict):
            output[next(iter(output))] = x
            return output
        return type(output)([x, *output[1:]]) if type(output) in (tuple, list) else None

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _moved(x: Tensor, other: Tensor) -> Tensor:
    return ((x != other) & ~(x.isnan() & other.isnan())).any(-1)


def _another(content: Content, sequences: Tensor, hidden: bool, config: object, to: float | None) -> Tensor:
    """The content with other values in the entries of ``sequences``: the real ones, or those that the mask hides."""
    value, device = content.value, content.value.device
    rows = sequences.to(device)[content.sequence.to(device)]
    where = rows.reshape(-1, *[1] * (value.ndim - 1)).expand(value.shape)
    real = _spread(content.real, value)
    if real is None:
        where = where & (not hidden)
    else:
        where = where & (~real if hidden else real)
    if content.discrete:
        return torch.where(where, _other_ids(value, real, config), value)
    if to is not None:
        return torch.where(where, to, value)
    spread = value.float().std().nan_to_num(1.0).clamp_min(1e-3) if value.numel() > 1 else 1.0
    return torch.where(
        where, value + (torch.rand_like(value, dtype=torch.float32) + 0.5).to(value.dtype) * spread, value
    )


def _spread(real: Tensor | None, value: Tensor) -> Tensor | None:
    """The mask over the whole content."""
    if real is None:
        return None
    shape, own = tuple(value.shape), tuple(real.shape)
    if shape[: len(own)] != own:
        axis = next((axis for axis in (1, 2) if shape[:axis] + shape[axis + 1 :] == own), None)
        if axis is None:
            return None
        return real.unsqueeze(axis).expand(shape)
    return real.reshape(*own, *[1] * (len(shape) - len(own))).expand(shape)


def _other_ids(ids: Tensor, real: Tensor | None, config: object) -> Tensor:
    """Another id in place of each that stands for itself; ids that mark the place of an image stay."""
    special, places = _special_ids(config)
    kept = ids if real is None else ids[real]
    kept = kept[kept >= 0]
    ordinary = torch.tensor(sorted(set(kept.unique().tolist()) - special - places), device=ids.device, dtype=ids.dtype)
    if len(ordinary) < 2:
        most = int(kept.max()) + 1 if kept.numel() else 2
        ordinary = torch.tensor(
            [number for number in range(max(most, 3)) if number not in special | places][:64] or [0, 1],
            device=ids.device,
            dtype=ids.dtype,
        )
    following = torch.searchsorted(ordinary, ids.contiguous(), right=True) % len(ordinary)
    other = ordinary[following]
    other = torch.where(other == ids, ordinary[(following + 1) % len(ordinary)], other)
    if places:
        marks = torch.isin(ids, torch.tensor(sorted(places), device=ids.device, dtype=ids.dtype))
        other = torch.where(marks, ids, other)
    return torch.where(ids < 0, ids, other)


def _special_ids(config: object) -> tuple[set[int], set[int]]:
    """Ids of a configuration that are no words, and those among them that mark a place."""
    special: set[int] = set()
    places: set[int] = set()
    if not hasattr(config, "to_dict"):
        return special, places

    def visit(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                visit(value)
            elif _ID.search(str(name)):
                numbers: Collection[Any] = value if isinstance(value, (list, tuple)) else [value]
                found = {n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0}
                special.update(found)
                if _PLACE.search(str(name)):
                    places.update(found)

    visit(config.to_dict())
    return special, places
