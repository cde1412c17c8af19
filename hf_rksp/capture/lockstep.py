"""Run batches through a model block by block: all of them pass one block before any of them enters the next.

A block is needed once, whatever the number of batches, so that a model may be larger than memory: it is put in place when
the batches stand before it, and taken away when they have passed. The model's own forward pass does the rest (embeddings,
masks, positions, caches), so this works for whatever transformers has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from hf_rksp.capture.blocks import Block
from hf_rksp.errors import CaptureError


class _Abandoned(BaseException):
    """Ends the forward pass of a batch that nobody waits for any more."""


class _Lane:
    """One batch on its way through the model, in a thread of its own that runs only while it is waited for."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.at: Block | None = None
        self.error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.thread = threading.Thread(target=self._main, args=(run,), daemon=True)
        self.thread.start()

    def _main(self, run: Callable[[], object]) -> None:
        try:
            self._wait()
            with torch.no_grad():  # which belongs to the thread
                run()
        except BaseException as error:
            self.error = error
        self.at = None
        self._stopped.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def stop(self, block: Block) -> None:
        """Called in the thread, before ``block``."""
        self.at = block
        self._stopped.release()
        self._wait()

    def advance(self) -> None:
        """Let the batch go to the next block, or to the end, and wait until it is there."""
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the thread."""
        self._abandoned = True
        self._go.release()
        self.thread.join()
        self.error = None  # it keeps the frames of the thread, and their tensors


#: Lets every batch pass the block, in order; calls its argument with the number of a batch before it does.
Advance = Callable[[Callable[[int], None]], None]


def lock_step(blocks: Sequence[Block], passes: Sequence[Callable[[], object]]) -> Iterator[tuple[Block, Advance]]:
    """For each block, in the order in which the model runs them: the block, and a function that lets all batches pass it.

    Args:
        blocks: where to stop.
        passes: for each batch, a function that runs the model on it.

    Raises:
        CaptureError: batches take different ways through the model.
    """
    lanes = [_Lane(run) for run in passes]
    by_thread = {lane.thread: lane for lane in lanes}

    def advance(note: Callable[[int], None]) -> None:
        for number, lane in enumerate(lanes):
            note(number)
            lane.advance()

    with contextlib.ExitStack() as stack:
        for block in blocks:

            def stop(module: nn.Module, args: object, block: Block = block) -> None:
                lane = by_thread.get(threading.current_thread())
                if lane is not None:
                    lane.stop(block)

            # First of all hooks: nothing is seen of a block before its turn.
            stack.callback(block.module.register_forward_pre_hook(stop, prepend=True).remove)
        for lane in lanes:
            stack.callback(lane.abandon)
        advance(lambda number: None)
        while lanes[0].at is not None:
            block = lanes[0].at
            if any(lane.at is not block for lane in lanes):
                raise CaptureError(
                    f"batches part ways before {block.path}: a model that skips blocks cannot be streamed; leave --stream out"
                )
            yield block, advance
        if any(lane.at is not None for lane in lanes):
            raise CaptureError("batches run different numbers of blocks: leave --stream out")


class BlockWeights(Protocol):
    """Puts the weights of one block at a time in place."""

    def identity(self) -> object:
        """What tells these weights from others: plain JSON types. A resumed profile has to have the same."""

    def make(self, block: Block) -> None:
        """Called before any batch enters ``block``."""

    def drop(self, block: Block) -> None:
        """Called when all batches have passed it."""
