"""The layouts of a model's stacks: from sizes where they leave no doubt, else from a probe whose answer is kept as a rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.chains import width_is_last
from hf_rksp.capture.contents import Content, contents_of
from hf_rksp.capture.dependence import feeds, never_set, placed_by_boxes
from hf_rksp.capture.evidence import layout_of
from hf_rksp.capture.explain import explains
from hf_rksp.capture.fronts import Run, first_states
from hf_rksp.capture.layout import Layout
from hf_rksp.capture.polarity import Reading, by_contents, what_is_marked
from hf_rksp.capture.probe import Seen, probe
from hf_rksp.capture.reducers import reducer_of
from hf_rksp.capture.refusals import REMEDY, no_tokens
from hf_rksp.capture.rules import Everything, Grid, Reducer, Rule, Shape, by_sizes
from hf_rksp.errors import CaptureError, cause_of

#: Entries of a batch on which it depends where the states of images and texts lie.
_PLACES = re.compile("grid|bbox|boxes|size|ratio|num_")


class Unsettled(CaptureError):
    """Sizes alone do not say which states of the stack at ``path`` are tokens: a probe has to."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


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
        self.model, self.stacks = uncompiled(model), tuple(stacks)
        self.notes: dict[str, str] = {}
        self.probes = 0
        self._config = next((m.config for m in self.model.modules() if hasattr(m, "config")), None)
        self._two_sides = bool(getattr(self._config, "is_encoder_decoder", False))
        #: By the path of a stack and the names of the contents: images alone are read in another way than images and text.
        self._rules: dict[tuple[str, ...], list[Rule]] = {}
        self._reducers: dict[str, Reducer | None] = {}
        self._checked: set[str] = set()
        self._filled: set[tuple[Any, ...]] = set()
        #: Content and mask -> what the mask marks.
        self._masks: dict[tuple[str, str], Reading] = {}
        #: Texts: an error that is kept would keep the frames that it came through, and their states, for a whole run.
        self.unread: dict[str, str] = {}
        self._exact: dict[tuple[Any, ...], Layout] = {}
        self._whole: set[tuple[Any, ...]] = set()

    def later_runs(self, stack: Stack, batch: Mapping[str, Any]) -> CaptureError | None:
        """Why the runs of a stack after its first in a pass over ``batch`` cannot be read; ``None`` if they can.

        A shared encoder reads another text each time; of a looped one, every run reads the same.
        """
        texts = [content for content in _reaching(self._contents(batch), stack, self._two_sides) if content.discrete]
        if len(texts) < 2:
            return None
        names = ", ".join(content.name for content in texts)
        return CaptureError(
            f"{stack.path} runs several times in a pass over a batch of several texts ({names}), and nothing says which of them it "
            "reads each time: call the model once for each text"
        )

    def of(self, stack: Stack, batch: Mapping[str, Any], states: Tensor) -> Layout:
        """The layout of ``states``, shape ``(..., d)``, of one stack in the forward pass of ``batch``.

        Raises:
            Unsettled: only a probe can tell; see `learn`. CaptureError: a probe could not tell either.
        """
        contents, lead = self._contents(batch), tuple(states.shape[:-1])
        self._check_width(stack, states)
        if not contents:  # nothing is known of the inputs: the first axis is the sequence
            return Layout(lead[0] if lead else 1)
        doubtful = next((content for content in contents if content.mask is not None), None)
        if doubtful is not None:
            raise Unsettled(stack.path, f"{doubtful.mask} may mark what is real of {doubtful.name}, or what is padding")
        exact = self._exact.get(_signature(stack, batch, contents, lead)) if self._exact else None
        if exact is not None:
            return exact.to(states.device)
        for content in contents:
            # A mask over queries and text that has the shape of the states, and not that of the text, is about the states.
            if content.real is not None and lead == tuple(content.real.shape) != tuple(content.value.shape[:2]):
                return Layout(content.sequences, content.real).to(states.device)
        rules = list(self._rules.get(_key(stack, contents), ()))
        if any(isinstance(rule, Everything) for rule in rules):
            self._look_for_zeros(stack, batch, contents, states)
        for known in rules:
            found = known.layout(contents, lead)
            if found is not None:
                return found.to(states.device)
        rule = self._by_sizes(stack, contents, lead)
        if rule is None:
            if stack.path in self.unread:
                raise CaptureError(self.unread[stack.path])
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
        if isinstance(rule, Everything):
            self._look_for_zeros(stack, batch, contents, states)
            self._whole.add(_signature(stack, batch, contents, lead[:1]))
        if isinstance(rule, Grid) and len(set(lead)) == len(lead) == 2:
            # From now on this stack's order of axes is known, also where a batch has as many sequences as tokens.
            order = "rows first" if found.axes is None else "tokens first"
            self._rules[_key(stack, contents)] = [Grid(rule.name, order, rule.prepended)]
        return found.to(states.device)

    def _look_for_zeros(
        self, stack: Stack, batch: Mapping[str, Any], contents: Sequence[Content], states: Tensor
    ) -> None:
        """Ask for a probe if there are states that are zero, once for each size of batch: the model may pad up to a size."""
        size = _signature(stack, batch, contents, ())
        if size in self._filled:
            return
        if bool((states == 0).all(-1).any()):
            raise Unsettled(stack.path, f"states of {stack.path} are zero, which may be padding that the model adds")
        self._filled.add(size)

    def _contents(self, batch: Mapping[str, Any]) -> list[Content]:
        """The contents of a batch, with the masks read as this model reads them."""
        return [self._as_read(content) for content in contents_of(batch, self._two_sides)]

    def _as_read(self, content: Content) -> Content:
        if content.mask is None or content.real is None:
            return content
        if bool(content.real.all()) or not bool(content.real.any()):
            return replace(content, real=None, mask=None)  # whatever it marks, nothing is told apart
        reading = self._masks.get((content.name, content.mask))
        if reading is None:
            return content
        real = {"real": content.real, "padding": ~content.real, "neither": None}[reading]
        return replace(content, real=real, mask=None)

    def _look_at_masks(self, run: Run, batch: Mapping[str, Any], contents: Sequence[Content], stop: bool) -> bool:
        """Find out what masks mark whose names do not say it; whether there is a new one."""
        new = [content for content in contents if content.mask is not None]
        for content in new:
            try:
                reading = what_is_marked(run, batch, content, self.stacks, self._config, stop)
            except Exception:  # of the model, which does not take other contents than it was given
                reading = by_contents(content)
            assert content.mask is not None
            self._masks[content.name, content.mask] = reading or "neither"
            if reading == "padding":
                self.notes[content.mask] = (
                    f"{content.mask} is 1 where there is padding, as the model reads it: what it marks is left out"
                )
            elif reading == "neither":
                self.notes[content.mask] = (
                    f"{content.mask} does not mark padding, as the model reads it: it leaves nothing out"
                )
            elif reading is None:
                self.notes[content.mask] = (
                    f"{content.mask} may mark padding, but neither the model nor the batch shows it, so every place of "
                    f"{content.name} counts. If {content.mask} marks padding, pass it as attention_mask"
                )
        return bool(new)

    def _check_width(self, stack: Stack, states: Tensor) -> None:
        """Refuse states that are images: their second axis holds the channels."""
        if stack.path not in self._checked:
            block = next(iter(stack.blocks), None)
            if block is not None and not width_is_last(block.module, states):
                raise no_tokens(stack.path, states)
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
        answered = {path: seen for path, seen in answers.items() if isinstance(seen, Seen)}
        for path, zero in never_set(run, batch, self.model, self.stacks, stop, answered).items():
            answered[path].zero = zero
        boxed = placed_by_boxes(run, batch, self.stacks, contents, stop, answers)
        padding: dict[Shape, tuple[Stack, Tensor]] = {}
        for path, seen in answers.items():
            if isinstance(seen, CaptureError):
                self.unread[path] = str(seen)
                continue
            stack = next(stack for stack in self.stacks if stack.path == path)
            self._filled.add(_signature(stack, batch, contents, ()))
            rule = self._by_sizes(stack, contents, seen.lead)
            if rule is not None and not (
                isinstance(rule, Everything) and (seen.lead in padding or bool(seen.zero.any()))
            ):
                continue  # what enters a stack behind another one is mixed already: there, sizes know better
            try:
                reducer, turned = self._reducer(stack), "padding" in self._masks.values()
                padded: Tensor | None = None
                if seen.lead in padding and feeds(run, batch, self.stacks, padding[seen.lead][0], stack, stop):
                    padded = padding[seen.lead][1]  # and is no tower beside the other
                layout, padded = layout_of(stack, contents, seen, padded, reducer, turned, self.notes)
                if padded is not None:
                    padding[seen.lead] = stack, padded
            except CaptureError as error:  # of this stack alone; the others can be read
                self.unread[path] = str(error)
                continue
            if layout.mask is None and layout.owner is None and layout.axes is None and layout.rows == 1:
                self._whole.add(_signature(stack, batch, contents, seen.lead[:1]))
            rule = None if path in boxed else explains(stack, contents, seen, layout, reducer)
            if rule is not None:
                kept = self._rules.setdefault(_key(stack, contents), [])
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
            raise CaptureError(next(iter(self.unread.values())))
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
            contents = self._contents(batch)
            known = self._rules.get(_key(first, contents), ())
            order = next((rule.order for rule in known if isinstance(rule, Grid)), None)
            for stack in others if order else ():
                for content in _reaching(contents, stack, self._two_sides):
                    rules = self._rules.setdefault(_key(stack, contents), [])
                    rules.append(Grid(content.name, order, stack.prepended))

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
        if cause is None or best:
            return best
        raise CaptureError(
            "sizes alone do not say which states are tokens, and the model cannot be run with other contents to find out "
            f"({cause_of(cause)}): {REMEDY}"
        ) from cause

    def _reducer(self, stack: Stack) -> Reducer | None:
        if stack.path not in self._reducers:
            self._reducers[stack.path] = reducer_of(self.model, stack)
        return self._reducers[stack.path]


def _key(stack: Stack, contents: Sequence[Content]) -> tuple[str, ...]:
    return stack.path, *(content.name for content in contents)


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
        if isinstance(value, Tensor) and _PLACES.search(name)
    )
    return stack.path, lead, sizes, masks, blanks, grids
