"""What KSS can read of a forward pass: the layers of each stack, and which of their tokens count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_rksp.capture import Layout, Stack, Transition
from hf_rksp.capture.agreement import agreed
from hf_rksp.profile.gather import Key
from hf_rksp.training.aside import Aside

_OVERWRITTEN = "a block adds to its input in place, so what it was is gone; from now on copies are kept"
_ELSEWHERE = "another process cannot read them in this pass"


@dataclass
class Stream:
    """What can be read of one stack in one forward pass.

    Attributes:
        layers: transitions with states of one shape, in the order in which they ran.
        last: the end of the stream, where the task's gradient is taken from.
        layout: which states are tokens, and of which sequence.
    """

    layers: list[Transition]
    last: Transition
    layout: Layout

    @property
    def width(self) -> int:
        """Dimensions of one token's state."""
        return self.layout.read(self.layers[0].x).shape[-1]


def read_stream(
    stack: Stack, seen: Sequence[Transition], read: Callable[[Tensor], Layout], aside: Aside
) -> Stream | None:
    """The stream of ``stack`` among the transitions ``seen``; ``aside`` is told of what cannot be read.

    ``read`` says how states of this pass are read.
    """
    first, last = seen[0], seen[-1]
    try:
        layout = read(first.x)
    except Exception as error:
        aside(f"the layers of {stack.path}", error, len(seen))
        return None
    if last.y.shape[0] != first.x.shape[0]:
        cause = f"states of shape {tuple(first.x.shape)} go in and of shape {tuple(last.y.shape)} come out"
        aside(f"the layers of {stack.path}", cause, len(seen))
        return None
    layers = []
    for transition in seen:
        if transition.overwritten:
            aside(f"layer {transition.block.path}", _OVERWRITTEN)
        elif transition.x.shape != first.x.shape:
            cause = f"its states have shape {tuple(transition.x.shape)}, and the first ones {tuple(first.x.shape)}"
            aside(f"layer {transition.block.path}", cause)
        else:
            layers.append(transition)
    return Stream(layers, last, layout) if layers else None


def readable_everywhere(stacks: Sequence[Stack], streams: Sequence[Stream], aside: Aside) -> list[Stream]:
    """``streams`` with the layers that every process can read. Every process has to call it."""
    everywhere = agreed(stacks, {key_of(layer) for stream in streams for layer in stream.layers})
    for stream in streams:
        own = len(stream.layers)
        stream.layers = [layer for layer in stream.layers if key_of(layer) in everywhere]
        if len(stream.layers) < own:
            aside(f"layers of {stream.last.stack.path}", _ELSEWHERE, own - len(stream.layers))
    return [stream for stream in streams if stream.layers]


def key_of(transition: Transition) -> Key:
    """The layer that a transition is of."""
    return transition.stack.path, transition.block.index
