"""Whose each state is: which axis holds the sequences, which states are tokens, and which are padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How the states of one stack in one forward pass are read.

    States of any shape become rows ``(n, t, width)``: ``n`` rows that belong to one sequence each, ``t`` states in a row.
    For text of shape ``(batch, tokens, d)`` that is the tensor itself.

    Attributes:
        sequences: number of sequences in the batch, for this stack.
        mask: shape ``(n, t)``, nonzero where a state counts; ``None`` if every state counts.
        owner: shape ``(n,)`` int64, the sequence of each row; ``None`` if row i is sequence i.
        axes: the leading axes in the order rows, positions, streams; ``None`` if they are in that order.
        rows, streams: how many of ``axes`` make up the rows, and how many hold several states of one token. The states of
            one token are laid side by side, so that ``width`` is their number times d.
    """

    sequences: int
    mask: Tensor | None = None
    owner: Tensor | None = None
    axes: tuple[int, ...] | None = None
    rows: int = 1
    streams: int = 0

    def read(self, states: Tensor) -> Tensor:
        """``states`` of shape ``(..., d)`` as rows ``(n, t, width)``."""
        if self.axes is not None:
            states = states.permute(*self.axes, states.ndim - 1)
        shape = states.shape
        ends = len(shape) - 1 - self.streams
        if (self.rows, ends) == (1, 2) and not self.streams:
            return states
        n, t = shape[: self.rows].numel(), shape[self.rows : ends].numel()
        return states.reshape(n, t, -1)

    def write(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `read`: rows in the shape that the states had."""
        if self.axes is None:
            return rows.reshape(shape)
        order = (*self.axes, len(shape) - 1)
        back = rows.reshape([shape[axis] for axis in order])
        return back.permute([order.index(axis) for axis in range(len(shape))])

    def to(self, device: torch.device) -> Layout:
        """The same with its tensors on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        owner = None if self.owner is None else self.owner.to(device)
        return Layout(self.sequences, mask, owner, self.axes, self.rows, self.streams)
