"""One pass of the batches through the model: second moments of each layer in each group of sequences."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Layout, Layouts, Stack, Unsettled, capture_transitions, lock_step, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.capture.chains import width_is_last
from hf_rksp.capture.hooks import Refuse
from hf_rksp.capture.lockstep import BlockWeights
from hf_rksp.capture.refusals import REMEDY, no_tokens
from hf_rksp.capture.states import side_streams
from hf_rksp.errors import CaptureError, InputError, NonFiniteError
from hf_rksp.profile.resume import Resume
from hf_rksp.profile.share import ALONE, Share
from hf_rksp.spectral.samples import GroupedMoments, GroupedSamples

#: What is kept of the transitions of a layer: the first is a list of `SecondMoments`.
Kept = GroupedMoments | GroupedSamples
#: A layer: path of its stack, index in it.
Key = tuple[str, int]


class MomentSink:
    """Takes the transitions of a forward pass and keeps, for each layer, what `keep` makes of each group of sequences.

    Sequence i of the whole run belongs to group ``i % groups``, whatever the batches and processes are.

    Attributes:
        moments: layer -> `GroupedMoments`, a list of one `SecondMoments` a group, or `GroupedSamples`.
        blocks: layer -> its block.
        late: layers that are not ``known`` yet: earlier batches did not reach them.
        seconds: time spent here, inside the hooks.
    """

    def __init__(
        self,
        layouts: Layouts,
        groups: int,
        keep: type[Kept] = GroupedMoments,
        first: int = 0,
        layers: Collection[Key] | None = None,
        known: Collection[Key] | None = None,
        strict: bool = True,
    ) -> None:
        self.layouts, self.layers = layouts, layers
        self.known, self.strict = known, strict
        self.late: dict[Key, States] = {}
        self.groups = groups
        self.first = first
        self.keep = keep
        self.moments: dict[Key, Any] = {}
        self.blocks: dict[Key, Block] = {}
        self.seconds = 0.0
        self.batch: Mapping[str, Any] = {}
        self._done: Counter[str] = Counter()  # sequences of the batches before this one; a tower may have its own
        self._now: dict[str, int] = {}
        self._read: dict[tuple[str, torch.Size], Layout] = {}

    def next_batch(self, batch: Mapping[str, Any]) -> None:
        """Say which batch the coming transitions belong to."""
        self._done.update(self._now)
        self._now, self._read = {}, {}
        self.batch = batch

    def __call__(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """Add one transition: a `Sink`. Layers that are not in ``layers`` are passed over."""
        key = stack.path, block.index
        if self.layers is not None and key not in self.layers:
            if self.known is not None and key not in self.known:
                self.late[key] = States(x.shape[-1], x[..., 0].numel(), x.element_size())
            return
        if block.index >= stack.members and (error := self.layouts.later_runs(stack, self.batch)) is not None:
            if self.strict:
                raise error
            self.layouts.unread[f"{stack.path} (run {block.index // stack.members + 1})"] = str(error)
            return
        start = time.perf_counter()
        layout = self._layout(stack, x)
        self._now[stack.path] = layout.sequences
        x, y = layout.read(x), layout.read(y)
        sets = self.moments.get((stack.path, block.index))
        if sets is None:
            device = "cpu" if x.device.type == "mps" else x.device  # MPS has no float64
            sets = self.keep(x.shape[-1], self.groups, device)
            self.moments[stack.path, block.index] = sets
            self.blocks[stack.path, block.index] = block
        try:
            for group in range(self.groups):
                rows = self._rows(stack, layout, group, len(x))
                if rows is not None:
                    sets.update(group, x[rows], y[rows], None if layout.mask is None else layout.mask[rows])
        except NonFiniteError as error:
            raise NonFiniteError(
                f"layer {block.path}: {error} (x is the input of the layer, y its output). Its weights or an earlier "
                "layer's are not finite, or the dtype overflows: check the checkpoint, or profile in float32"
            ) from None
        self.seconds += time.perf_counter() - start

    def _layout(self, stack: Stack, x: Tensor) -> Layout:
        key = stack.path, x.shape
        if key not in self._read:
            self._read[key] = self.layouts.of(stack, self.batch, x)
        return self._read[key]

    def _rows(self, stack: Stack, layout: Layout, group: int, rows: int) -> slice | Tensor | None:
        """The rows of the sequences of one group; ``None`` if there are none."""
        offset = (group - self.first - self._done[stack.path]) % self.groups
        if layout.owner is None:
            return slice(offset, None, self.groups) if offset < rows else None
        mine = layout.owner % self.groups == offset
        return mine.nonzero()[:, 0] if bool(mine.any()) else None


class States(NamedTuple):
    """Shape of the states that a block sees: their width, rows of one batch (padding among them), bytes of a number."""

    width: int
    rows: int
    itemsize: int


def survey(
    model: nn.Module,
    batch: Mapping[str, Any],
    stacks: Sequence[Stack],
    refuse: Refuse | None = None,
    notes: dict[str, str] | None = None,
) -> dict[Key, States]:
    """One forward pass of one batch: which layers run, and what states they see, in the order of depth.

    A module that runs several times is as many layers; they stand in the order in which they ran.

    Args:
        model, batch, stacks: see `gather_moments`.
        refuse: called with each block that takes no state, or returns one of another shape, in place of the error.
        notes: takes a sentence on the states that blocks take and return beside the first, by the path of their stack.

    Raises:
        CaptureError: a block is no residual block, and there is no ``refuse``.
    """
    seen: dict[Key, States] = {}

    def note(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        if refuse is not None and not width_is_last(block.module, x):
            refuse(stack, block, no_tokens(stack.path, x))
        else:
            seen[stack.path, block.index] = States(x.shape[-1], x[..., 0].numel(), x.element_size())

    def look_beside(
        stack: Stack, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        if notes is not None and (shapes := side_streams(args, kwargs, output)):
            notes[stack.path] = (
                f"The blocks of {stack.path} take and return a second stream of states, of shape {shapes[0]}: it is not profiled"
            )

    hooks = [
        stack.blocks[0].module.register_forward_hook(functools.partial(look_beside, stack), with_kwargs=True)
        for stack in stacks
    ]
    try:
        with capture_transitions(stacks, note, refuse) as runs:
            runs.next_pass()
            forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    order = list(seen)
    for stack in stacks:
        if not any(path == stack.path and index >= stack.members for path, index in order):
            # Each block ran once: they stand as they are registered.
            own = sorted(key for key in order if key[0] == stack.path)
            order = [key for key in order if key[0] != stack.path] + own
    places = {stack.path: number for number, stack in enumerate(stacks)}
    return {key: seen[key] for key in sorted(order, key=lambda key: places[key[0]])}


def gather_moments(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    stacks: Sequence[Stack],
    layers: Collection[Key],
    groups: int,
    keep: type[Kept] = GroupedMoments,
    share: Share = ALONE,
    layouts: Layouts | None = None,
    strict: bool = True,
    known: dict[Key, States] | None = None,
) -> tuple[dict[Key, Any], dict[str, float]]:
    """What ``keep`` makes of ``layers`` over all ``batches``, and the seconds of the forward pass and of that.

    Where sizes do not say which states are tokens, the model is probed with the batch in question: see
    `hf_rksp.capture.Layouts`. Unless ``strict``, a stack of which a probe cannot tell either is left out, if there are others.

    ``known`` has the layers that batches were seen to reach, and takes those that others reach too.

    Raises:
        NonFiniteError: NaN or inf; the first layer is named.
        InputError: every token is padding.
        CaptureError: no evidence says which states are tokens.
    """

    def looked_at(stack: Stack, block: Block) -> bool:
        never = known is not None and not any(stack.holds(block, key) for key in known)
        return never or any(stack.holds(block, key) for key in layers)

    chosen = [replace(s, blocks=tuple(b for b in s.blocks if looked_at(s, b)), members=s.members) for s in stacks]
    layouts = layouts or Layouts(model, stacks)
    probed: set[tuple[int, str]] = set()
    start = time.perf_counter()
    while True:
        sink = MomentSink(layouts, groups, keep, share.first, layers, known, strict)
        paths = {stack.path for stack in (layouts.stacks if strict else layouts.readable)}
        read = [stack for stack in chosen if stack.path in paths]
        try:
            with capture_transitions(read, sink) as runs:
                for batch in batches:
                    runs.next_pass()
                    sink.next_batch(batch)
                    forward(model, batch)
            break
        except Unsettled as unsettled:
            if (id(sink.batch), unsettled.path) in probed:
                error = CaptureError(f"{unsettled}, and a probe does not either: {REMEDY}")
                if strict:
                    raise error from None
                layouts.unread[unsettled.path] = str(error)
                continue
            probed.add((id(sink.batch), unsettled.path))
            with untouched(model):
                layouts.learn(functools.partial(forward, model), sink.batch)
        except CaptureError as error:
            if strict or str(error) not in layouts.unread.values():
                raise
    elapsed = time.perf_counter() - start
    if known is not None:
        for late in share.gather(sink.late):
            known.update({key: states for key, states in late.items() if key not in known})
    for path in set().union(*share.gather(list(layouts.unread))):  # another process cannot read it
        layouts.unread.setdefault(path, f"another process cannot read {path}")
        sink.moments = {key: kept for key, kept in sink.moments.items() if key[0] != path}
    _merge(sink.moments, share)
    _check_counted(sink.moments)
    return sink.moments, {"forward": elapsed - sink.seconds, "moments": sink.seconds}


def stream_moments(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    stacks: Sequence[Stack],
    groups: int,
    weights: BlockWeights,
    keep: type[Kept] = GroupedMoments,
    resume: Resume | None = None,
    share: Share = ALONE,
    layouts: Layouts | None = None,
) -> Iterator[tuple[Key, Any, dict[str, float]]]:
    """The same as `gather_moments`, layer by layer in the order of depth, with one block in memory at a time.

    Layers that ``resume`` has are passed over, and not given again.

    Raises:
        NonFiniteError: NaN or inf; the layer is named.
        CaptureError: a block ran several times in one forward pass.
    """
    done: set[str] = set()
    layouts = layouts or Layouts(model, stacks)
    passes = [functools.partial(forward, model, batch) for batch in batches]
    for batch in batches:
        layouts.learn_streamed(functools.partial(forward, model), batch)
    stack_of = {block.path: stack for stack in stacks for block in stack.blocks}
    sink: MomentSink | None = None
    now = 0

    def note(number: int) -> None:
        nonlocal now
        now = number
        if sink is not None:
            sink.next_batch(batches[number])

    def see(stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        if sink is not None:  # the runs of a block are those of the batches: none runs twice in one of them
            sink(stack, stack.find(block.index % stack.members), x, y)

    start = time.perf_counter()
    # The hooks are there before a batch stands in front of a block: those that come later are not called for it.
    watched = resume.watching(stacks, lambda: now) if resume else contextlib.nullcontext()
    with capture_transitions(stacks, see), watched:
        for block, advance in lock_step([block for stack in stacks for block in stack.blocks], passes):
            if block.path in done:
                raise _ran_twice(block)
            done.add(block.path)
            path = stack_of[block.path].path
            if resume and (path, block.index) in resume.layers:
                sink = None
                advance(note)
                start = time.perf_counter()
                continue
            sink = MomentSink(layouts, groups, keep, share.first)
            weights.make(block)
            advance(note)
            weights.drop(block)
            _merge(sink.moments, share)
            _check_counted(sink.moments)
            seconds = {"forward": time.perf_counter() - start - sink.seconds, "moments": sink.seconds}
            yield *sink.moments.popitem(), seconds
            start = time.perf_counter()


def _merge(moments: Mapping[Key, Any], share: Share) -> None:
    if share.world > 1:
        for kept in moments.values():
            kept.merge_processes(share.gather)


def _ran_twice(block: Block) -> CaptureError:
    return CaptureError(
        f"block {block.path} ran several times in one forward pass, so it cannot be streamed: leave --stream out"
    )


def _check_counted(moments: Mapping[Key, Kept]) -> None:
    for (stack, _), kept in moments.items():
        if not kept.tokens:
            raise InputError(
                f"batches: every token that {stack} sees is padding (attention_mask is 0); pass batches with text"
            )
