"""The layouts of a model's stacks: from sizes where they leave no doubt, else from a probe whose answer is kept as a rule."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack, inside
from hf_rksp.capture.chains import width_is_last
from hf_rksp.capture.contents import Content, contents_of, sequences_of
from hf_rksp.capture.fronts import Run, first_states
from hf_rksp.capture.layout import Layout
from hf_rksp.capture.polarity import marks_padding
from hf_rksp.capture.probe import Seen, probe
from hf_rksp.capture.rules import Entries, Everything, Frames, Grid, Parts, Reducer, Rule, Shape, by_sizes
from hf_rksp.errors import CaptureError, cause_of

#: Names that transformers has for "how many frames do so many samples become".
_REDUCERS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
#: What helps where it cannot be told which states are tokens.
REMEDY = (
    "pass batches of one kind of input without padding, or name the lists of blocks that can be read with blocks=[...]"
)


class Unsettled(CaptureError):
    """Sizes alone do not say which states of the stack at ``path`` are tokens: a probe has to."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def no_tokens(stack: Stack, states: Tensor) -> CaptureError:
    """The error for states whose second axis holds the channels."""
    return CaptureError(
        f"the states of {stack.path} have shape {tuple(states.shape)} with the channels in the second axis, as in a "
        "convolutional network: they are no residual stream of tokens"
    )


class Layouts:
    """Reads the states of the stacks of one model.

    Args:
        model: without DDP or DeepSpeed around it.
        stacks: from `hf_rksp.capture.find_stacks`.

    Attributes:
        probes: number of probes so far.
        notes: sentences on what is left out or read in another way than usual, by the stack or content that they are about.
        unread: why a stack cannot be read, by its path.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[Stack]) -> None:
        self.model, self.stacks = getattr(model, "_orig_mod", model), tuple(stacks)
        self.notes: dict[str, str] = {}
        self.probes = 0
        self._config = next((m.config for m in self.model.modules() if hasattr(m, "config")), None)
        self._two_sides = bool(getattr(self._config, "is_encoder_decoder", False))
        self._rules: dict[str, list[Rule]] = {}
        self._reducers: dict[str, Reducer | None] = {}
        self._checked: set[str] = set()
        self._filled: set[str] = set()
        self._read: set[str] = set()
        self._turned: set[str] = set()
        self.unread: dict[str, CaptureError] = {}
        self._exact: dict[tuple[Any, ...], Layout] = {}
        self._whole: set[tuple[Any, ...]] = set()

    def of(self, stack: Stack, batch: Mapping[str, Any], states: Tensor) -> Layout:
        """The layout of ``states``, shape ``(..., d)``, of one stack in the forward pass of ``batch``.

        Raises:
            Unsettled: only a probe can tell; see `learn`. CaptureError: a probe could not tell either.
        """
        contents, lead = self._contents(batch), tuple(states.shape[:-1])
        self._check_width(stack, states)
        if not contents:  # nothing is known of the inputs: the first axis is the sequence
            return Layout(lead[0] if lead else 1)
        exact = self._exact.get(_signature(stack, batch, contents, lead)) if self._exact else None
        if exact is not None:
            return exact.to(states.device)
        for content in contents:
            # A mask over queries and text that has the shape of the states, and not that of the text, is about the states.
            if content.real is not None and lead == tuple(content.real.shape) != tuple(content.value.shape[:2]):
                return Layout(content.sequences, content.real).to(states.device)
        for rule in self._rules.get(stack.path, ()):
            found = rule.layout(contents, lead)
            if found is not None:
                return found.to(states.device)
        rule = self._by_sizes(stack, contents, lead)
        if rule is None:
            if stack.path in self.unread:
                raise self.unread[stack.path]
            if lead and _signature(stack, batch, contents, lead[:1]) in self._whole:
                # No state in front of the stack is padding: then none is behind a block that pools them.
                return Layout(lead[0])
            sizes = ", ".join(f"{content.name} {tuple(content.value.shape)}" for content in contents)
            raise Unsettled(
                stack.path,
                f"the states of {stack.path} have shape {tuple(states.shape)}, and the batch has {sizes}: sizes alone do not say "
                "which of the states are tokens and which are padding",
            )
        found = rule.layout(contents, lead)
        assert found is not None
        if isinstance(rule, Everything) and stack.path not in self._filled:
            if bool((states == 0).all(-1).any()):
                raise Unsettled(
                    stack.path, f"states of {stack.path} are zero, which may be padding that the model adds"
                )
            self._filled.add(stack.path)
            self._whole.add(_signature(stack, batch, contents, lead[:1]))
        if isinstance(rule, Grid) and len(set(lead)) == len(lead) == 2:
            # From now on this stack's order of axes is known, also where a batch has as many sequences as tokens.
            order = "rows first" if found.axes is None else "tokens first"
            self._rules[stack.path] = [Grid(rule.name, order, rule.prepended)]
        return found.to(states.device)

    def _contents(self, batch: Mapping[str, Any]) -> list[Content]:
        """The contents of a batch, with the masks read as this model reads them."""
        return [
            replace(content, real=~content.real)
            if content.real is not None and content.name in self._turned
            else content
            for content in contents_of(batch, self._two_sides)
        ]

    def _look_at_masks(self, run: Run, batch: Mapping[str, Any], contents: Sequence[Content], stop: bool) -> bool:
        """Find out, once for each content, which masks mark the padding; whether there is a new one."""
        turned = set()
        for content in contents:
            if content.real is None or content.discrete or content.name in self._read:
                continue
            self._read.add(content.name)
            with contextlib.suppress(Exception):  # a model that does not take other contents than it was given
                if marks_padding(run, batch, content, self.stacks, stop):
                    turned.add(content.name)
                    self.notes[content.name] = (
                        f"the mask of {content.name} is 1 where there is padding, as this model has it"
                    )
        self._turned |= turned
        return bool(turned)

    def _check_width(self, stack: Stack, states: Tensor) -> None:
        """Refuse states that are images: their second axis holds the channels."""
        if stack.path not in self._checked:
            block = next(iter(stack.blocks), None)
            if block is not None and not width_is_last(block.module, states):
                raise no_tokens(stack, states)
            self._checked.add(stack.path)

    def _by_sizes(self, stack: Stack, contents: Sequence[Content], lead: Shape) -> Rule | None:
        reaching = _reaching(contents, stack, self._two_sides)
        return by_sizes(reaching, lead, stack.prepended, self._reducer(stack))

    def learn(
        self, run: Run, batch: Mapping[str, Any], stop: bool = True, stacks: Sequence[Stack] | None = None
    ) -> None:
        """Probe the model with ``batch``, and keep for each stack the rule that explains what was seen.

        The model has to be in evaluation mode without gradients; see `hf_rksp.capture.untouched`.

        Args:
            run: one forward pass of the model on a batch.
            batch: what the model is called with.
            stop: end a pass as soon as all stacks are reached.
            stacks: those that are looked at; all of them without it.

        A stack whose states cannot be matched with the contents of the batch is refused by `of` from then on.

        Raises:
            CaptureError: the model is another one at each pass.
        """
        contents = self._contents(batch)
        if not contents:
            return
        self.probes += 1
        if self._look_at_masks(run, batch, contents, stop):
            contents = self._contents(batch)
        answers = self._answers(run, batch, contents, stop, stacks or self.stacks)
        padding: dict[Shape, Tensor] = {}
        for path, seen in answers.items():
            if isinstance(seen, CaptureError):
                self.unread[path] = seen
                continue
            stack = next(stack for stack in self.stacks if stack.path == path)
            rule = self._by_sizes(stack, contents, seen.lead)
            if rule is not None and not (
                isinstance(rule, Everything) and (seen.lead in padding or bool(seen.zero.any()))
            ):
                continue  # what enters a stack behind another one is mixed already: there, sizes know better
            try:
                layout = self._layout(stack, contents, seen, padding)
            except CaptureError as error:  # of this stack alone; the others can be read
                self.unread[path] = error
                continue
            if layout.mask is None and layout.owner is None and layout.axes is None and layout.rows == 1:
                self._whole.add(_signature(stack, batch, contents, seen.lead[:1]))
            rule = self._explains(stack, contents, seen, layout)
            if rule is not None:
                kept = self._rules.setdefault(path, [])
                kept.insert(0, rule)
                del kept[4:]
            else:
                self._exact[_signature(stack, batch, contents, seen.lead)] = layout

    @property
    def readable(self) -> list[Stack]:
        """The stacks without those of which no probe could tell the tokens.

        Raises:
            CaptureError: none is left.
        """
        left = [stack for stack in self.stacks if stack.path not in self.unread]
        if self.stacks and not left:
            raise next(iter(self.unread.values()))
        return left

    def learn_streamed(self, run: Run, batch: Mapping[str, Any]) -> None:
        """The same for a model whose blocks are not in memory: what stands in front of the first one is all that can be seen.

        The other stacks are taken to have their axes in the same order.
        """
        first, *others = self.stacks
        states = first_states(run, batch, [first]).get(first.path)
        if states is None:
            return
        try:
            self.of(first, batch, states)
        except Unsettled:
            self.learn(run, batch, stacks=[first])
            order = next((rule.order for rule in self._rules.get(first.path, ()) if isinstance(rule, Grid)), None)
            for stack in others if order else ():
                for content in _reaching(self._contents(batch), stack, self._two_sides):
                    self._rules.setdefault(stack.path, []).append(Grid(content.name, order, stack.prepended))

    def _answers(
        self, run: Run, batch: Mapping[str, Any], contents: Sequence[Content], stop: bool, stacks: Sequence[Stack]
    ) -> dict[str, Seen | CaptureError]:
        ways = [(batch, False)]
        if any(content.blank is not None for content in contents):
            ways.append((batch, True))
        if "labels" in batch and all(content.name != "labels" for content in contents):
            unlabelled = {name: value for name, value in batch.items() if name != "labels"}
            ways += [(unlabelled, blank) for _, blank in ways]  # a loss may refuse what becomes of other contents
        cause: Exception | None = None
        best: dict[str, Seen | CaptureError] = {}
        for inputs, blank in ways:
            try:
                found = probe(run, inputs, contents, stacks, self._config, stop, blank)
            except Exception as error:  # of the model, which does not take other contents than it was given
                cause = cause or error
                continue
            if not best or _refused(found) < _refused(best):
                best = found
            if not _refused(best):
                break
        if best:
            return best
        raise CaptureError(
            "sizes alone do not say which states are tokens, and the model cannot be run with other contents to find out "
            f"({cause_of(cause)}): {REMEDY}"
        ) from cause

    def _layout(self, stack: Stack, contents: Sequence[Content], seen: Seen, padding: dict[Shape, Tensor]) -> Layout:
        """What the probe says, for the very batch that was probed.

        ``padding`` has the padding in front of the stacks before this one: what lies between may add to it.
        """
        moved = torch.stack(list(seen.moved.values())).any(0)
        if not moved.any():
            return self._learnt(stack, contents, seen)
        space = next((space for space, owner in seen.owner.items() if (owner >= 0).any()), None)
        if space is None:
            raise CaptureError(
                f"the states in front of {stack.path} move, but with no sequence of the batch in particular, so they belong to "
                f"none of them: {REMEDY}"
            )
        owner = seen.owner[space]
        own_mixed = seen.mixed if seen.mixed is not None else torch.zeros_like(moved)
        frames = self._by_reducer(stack, contents, seen)
        if frames is not None:
            return frames
        grid = _streams(contents, seen)
        if grid is not None:
            return grid
        if bool(own_mixed.any()):
            merged = _regrouped(owner, seen, contents, space)
            if merged is None:
                raise CaptureError(
                    f"the states in front of {stack.path} depend on several sequences of the batch at once, so they belong to none "
                    f"of them: pass batches of one sequence, or {REMEDY}"
                )
            owner = merged
        sequences = _count(contents, space)
        axis = _axis(owner)
        hidden = torch.zeros_like(moved) if seen.hidden is None else seen.hidden
        text = _written(contents, seen, moved, hidden)
        if text is not None:
            return Layout(sequences, text)
        counted = moved & _attended(contents, seen, moved, hidden, bool(self._turned)) & ~(hidden & seen.causal)
        if seen.attended is not None and not self._turned:  # an image may be added to the padding of a text too
            counted &= ~hidden | seen.attended.to(moved.device)
        images = [c for c in contents if not c.discrete and bool(seen.moved[c.name].any())]
        own = ~moved & ~hidden
        if axis is not None:
            whole = own.all(axis, keepdim=True).expand(own.shape)
            learnt = whole & own
            padded = _zeros_behind(moved, learnt, seen, axis)
            if seen.attended is not None and not self._turned:
                padded |= learnt & ~seen.attended.to(moved.device)
            padded = padding.setdefault(seen.lead, padded) & (learnt | seen.zero)
            learnt &= ~padded
            if images and not stack.prepended:
                counted = (counted | learnt) & ~padded  # class tokens stand among the places of an image
                learnt = padded
            if bool(learnt.any()):
                self.notes[stack.path] = (
                    f"{int(learnt.movedim(axis, 0)[0].sum())} states per sequence of {stack.path} are the model's own, not tokens "
                    "of the batch: they are left out"
                )
            order = (axis, *[a for a in range(owner.ndim) if a != axis])
            by_row = owner.movedim(axis, 0).flatten(1).amax(1).clamp_min(0)
            mask = counted.permute(order).flatten(1)
            plain = bool((by_row == torch.arange(len(by_row), device=by_row.device)).all()) and len(by_row) == sequences
            return Layout(
                sequences,
                None if bool(mask.all()) else mask,
                None if plain else by_row,
                None if order == tuple(range(owner.ndim)) else order,
            )
        mask = counted & (owner >= 0)
        return Layout(
            sequences,
            None if bool(mask.all()) else mask.reshape(-1, 1),
            owner.clamp_min(0).reshape(-1),
            None,
            owner.ndim,
        )

    def _learnt(self, stack: Stack, contents: Sequence[Content], seen: Seen) -> Layout:
        """Learnt queries alone, which look at the batch from the first block on: all of them count."""
        sequences = _count(contents, "")
        if len(seen.lead) < 2 or seen.lead[0] != sequences:
            raise CaptureError(
                f"no state in front of {stack.path} depends on {', '.join(seen.moved)}: pass inputs that reach it, or name "
                "other lists with blocks=[...]"
            )
        return Layout(sequences)

    def _by_reducer(self, stack: Stack, contents: Sequence[Content], seen: Seen) -> Layout | None:
        reducer = self._reducer(stack)
        for content in contents:
            if reducer and not content.discrete and content.real is not None and bool(seen.moved[content.name].any()):
                found = Frames(content.name, reducer).layout(contents, seen.lead)
                if found is not None:
                    return found
        return None

    def _explains(self, stack: Stack, contents: Sequence[Content], seen: Seen, layout: Layout) -> Rule | None:
        """A rule that gives just this layout and will hold for other batches."""
        moving = [content for content in contents if bool(seen.moved[content.name].any())]
        candidates: list[Rule] = []
        for content in moving:
            candidates += [Grid(content.name, order, stack.prepended) for order in ("rows first", "tokens first")]
        reducer = self._reducer(stack)
        if reducer is not None:
            candidates += [Frames(content.name, reducer) for content in moving]
        parts = _parts(moving, seen, layout)
        if parts is not None:
            candidates.append(parts)
        for content in moving:
            candidates += [Everything(content.name), Entries(content.name)]
        if not moving:
            candidates += [Everything(content.name, learnt=True) for content in contents]
        for rule in candidates:
            found = rule.layout(contents, seen.lead)
            if found is not None and _same(found, layout, seen.lead):
                return rule
        return None

    def _reducer(self, stack: Stack) -> Reducer | None:
        """The way from samples to frames: of a module that the stack lies in, else of any."""
        if stack.path not in self._reducers:
            owners = [
                (not name or inside(f"{stack.path}.", name), getattr(module, method))
                for name, module in self.model.named_modules()
                for method in _REDUCERS
                if hasattr(module, method)
            ]
            owners.sort(key=lambda pair: not pair[0])
            self._reducers[stack.path] = _frames(owners[0][1]) if owners else None
        return self._reducers[stack.path]


def _refused(answers: Mapping[str, object]) -> int:
    return sum(isinstance(answer, CaptureError) for answer in answers.values())


def _reaching(contents: Sequence[Content], stack: Stack, two_sides: bool) -> list[Content]:
    """The contents that can reach the stack by what the model says of its two sides."""
    if not two_sides:
        return list(contents)
    if stack.side is None:
        return list(contents)
    return [content for content in contents if content.decoder == (stack.side == "decoder")]


def _signature(stack: Stack, batch: Mapping[str, Any], contents: Sequence[Content], lead: Shape) -> tuple[Any, ...]:
    """What an answer of the probe that no rule explains depends on: sizes, blank images, the numbers of masks and grids."""
    sizes = tuple((content.name, tuple(content.value.shape)) for content in contents)
    masks = tuple(
        None if content.real is None else hash(tuple(content.real.flatten().tolist())) for content in contents
    )
    blanks = tuple(None if content.blank is None else tuple(content.blank.flatten().tolist()) for content in contents)
    grids = tuple(
        (name, tuple(value.flatten().tolist()))
        for name, value in batch.items()
        if isinstance(value, Tensor) and "grid" in name
    )
    return stack.path, lead, sizes, masks, blanks, grids


def _count(contents: Sequence[Content], space: str) -> int:
    if space:
        return next(content.sequences for content in contents if content.name == space)
    return sequences_of(contents)


def _axis(owner: Tensor) -> int | None:
    """The axis along which the sequence changes and across which it does not; ``None`` if there is none."""
    if owner.ndim < 2:
        return None
    for axis in range(owner.ndim):
        rows = owner.movedim(axis, 0).flatten(1)
        most = rows.amax(1, keepdim=True)
        if bool(((rows == most) | (rows < 0)).all()):
            return axis
    return None


def _attended(contents: Sequence[Content], seen: Seen, moved: Tensor, hidden: Tensor, turned: bool) -> Tensor:
    """Which states the model itself takes for real, where convolutions carry real pixels and samples into the padding.

    ``turned``: its masks mark the padding.
    """
    blurred = any(content.real is not None and not content.discrete for content in contents)
    if seen.attended is None or not blurred:
        return torch.ones_like(moved)
    attended = seen.attended.to(moved.device)
    if turned:
        attended = ~attended
    return torch.ones_like(moved) if bool((hidden & ~moved & attended).any()) else attended


def _written(contents: Sequence[Content], seen: Seen, moved: Tensor, hidden: Tensor) -> Tensor | None:
    """The mask of a text that has a state for each of its ids, images in their places.

    A place whose state another image leaves as it is (one of few codes that stand for a patch) is a token all the same.
    """
    for content in contents:
        real = content.real
        if not content.discrete or real is None or seen.lead != tuple(real.shape):
            continue
        real = real.to(moved.device)
        if bool(seen.moved[content.name].any()) and not bool((moved & ~real).any() or (hidden & real).any()):
            return real
    return None


def _zeros_behind(moved: Tensor, learnt: Tensor, seen: Seen, axis: int) -> Tensor:
    """The states that are zero and stand between those of the batch and the model's own, or the end: padding up to a size.

    Class tokens and registers that have not been trained are zero as well, but stand in front of those of the batch.
    """
    order = (axis, *[a for a in range(moved.ndim) if a != axis])
    flat, empty = moved.permute(order).flatten(1), (learnt & seen.zero).permute(order).flatten(1)
    found = empty & _next_to(flat, empty) & ~_next_to(flat.flip(1), empty.flip(1)).flip(1)
    shape = [moved.shape[a] for a in order]
    return found.reshape(shape).permute([order.index(a) for a in range(moved.ndim)])


def _next_to(start: Tensor, through: Tensor) -> Tensor:
    """Of the places in ``through``, rows of places: those that are reached from a place in ``start`` going to the right."""
    reached = torch.zeros_like(start)
    for place in range(1, start.shape[1]):
        reached[:, place] = through[:, place] & (start[:, place - 1] | reached[:, place - 1])
    return reached


def _streams(contents: Sequence[Content], seen: Seen) -> Layout | None:
    """States of shape ``(streams, batch, tokens)``, or the streams behind: several states of each token of one content."""
    for content in contents:
        moved = seen.moved[content.name]
        if not content.discrete or not bool(moved.any()) or len(seen.lead) < 3:
            continue
        for order in (None, "rows first"):
            found = Grid(content.name, order).layout(contents, seen.lead)
            if found is not None and found.streams:
                return found
    return None


def _regrouped(owner: Tensor, seen: Seen, contents: Sequence[Content], space: str) -> Tensor | None:
    """Where several entries along the first axis of a content make one state (codebooks), the first axis of the states."""
    count = _count(contents, space)
    if len(seen.lead) >= 2 and seen.lead[0] > 0 and count % seen.lead[0] == 0 and count > seen.lead[0]:
        rows = torch.arange(seen.lead[0], device=owner.device) * (count // seen.lead[0])
        return torch.where(owner >= 0, rows.reshape(-1, *[1] * (owner.ndim - 1)), -1)
    return None


def _parts(moving: Sequence[Content], seen: Seen, layout: Layout) -> Parts | None:
    """The contents in the columns of a row, if every one of them stands in one piece."""
    if len(seen.lead) != 2 or layout.axes is not None or layout.owner is not None:
        return None
    width = seen.lead[1]
    placed: list[tuple[str, int, int]] = []
    for content in moving:
        if content.value.shape[0] != seen.lead[0] or content.value.ndim < 2:
            continue
        shape = content.value.shape[:2]
        if content.real is not None and content.real.shape != shape:
            continue
        if not content.discrete and content.real is None:
            continue  # the places of an image: every one counts, how many there are is the model's business
        moved = seen.moved[content.name]
        real = torch.ones(shape, dtype=torch.bool, device=moved.device) if content.real is None else content.real
        real = real.to(moved.device)
        begins = [
            start for start in range(width - shape[1] + 1) if bool((moved[:, start : start + shape[1]] == real).all())
        ]
        if len(begins) != 1:
            return None
        placed.append((content.name, begins[0], shape[1]))
    placed.sort(key=lambda part: part[1])
    if not placed or any(a[1] + a[2] != b[1] for a, b in itertools.pairwise(placed)):
        return None
    begin, end = placed[0][1], placed[-1][1] + placed[-1][2]
    mask = torch.ones(seen.lead, dtype=torch.bool) if layout.mask is None else layout.mask.bool().cpu()
    if not (mask[:, :begin] == mask[:1, :begin]).all() or not (mask[:, end:] == mask[:1, end:]).all():
        return None
    before, after = tuple(mask[0, :begin].tolist()), tuple(mask[0, end:].tolist())
    return Parts(tuple((name, start) for name, start, _ in placed), before, after, not any(after))


def _same(one: Layout, other: Layout, lead: Shape) -> bool:
    """Whether two layouts count the same states and give them to the same sequences."""
    if (one.streams, one.sequences) != (other.streams, other.sequences):
        return False

    def spread(layout: Layout) -> Tensor:
        indices = torch.arange(math.prod(lead)).reshape(*lead, 1)
        rows = layout.read(indices)
        owner = torch.arange(len(rows)) if layout.owner is None else layout.owner.cpu()
        owners = owner[:, None].expand(rows.shape[:2]).clone()
        if layout.mask is not None:
            owners[layout.mask.cpu() == 0] = -1
        flat = torch.empty(math.prod(lead), dtype=torch.long)
        flat[rows.reshape(-1, rows.shape[-1])[:, 0]] = owners.reshape(-1)
        return flat

    if one.streams:
        return one.axes == other.axes
    return bool((spread(one) == spread(other)).all())


def _frames(method: Callable[..., Any]) -> Reducer:
    """The mask over frames from the mask over samples, by a method of the model that counts frames."""

    def lengths(samples: Tensor) -> list[Tensor]:
        for more in ({"add_adapter": False}, {}):
            with contextlib.suppress(Exception):  # a method of the model's own, which may want another configuration
                found = method(samples, **more)
                each = found if isinstance(found, (tuple, list)) else [found]
                counted = [n for n in each if isinstance(n, Tensor) and n.shape == samples.shape]
                if counted:
                    return counted
        with contextlib.suppress(Exception):  # some count for one sound at a time
            return [samples.new_tensor([int(method(number)) for number in samples])]
        return []

    def reduce(real: Tensor, frames: int) -> Tensor | None:
        # Only padding at the end is a number of samples.
        ones = real.sum(1)
        if not bool((real == (torch.arange(real.shape[1], device=real.device) < ones[:, None])).all()):
            return None
        for whole, own in zip(lengths(ones.new_tensor([real.shape[1]])), lengths(ones), strict=False):
            if int(whole[0]) == frames:
                return torch.arange(frames, device=real.device) < own.to(real.device)[:, None]
        return None

    return reduce
