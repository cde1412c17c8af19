"""A forward pass goes on if who looks at it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hf_rksp.capture import Block, Stack
from hf_rksp.capture.tap import Looker
from hf_rksp.errors import CaptureError


class Unharmed:
    """A looker whose errors do not end the forward pass that it looks at. After an error it is told of the end of the pass alone.

    Args:
        looker: who looks.
        failed: is called with an error, inside an ``except``; it may raise it.
    """

    def __init__(self, looker: Looker, failed: Callable[[Exception], None]) -> None:
        self.looker, self.failed = looker, failed
        self._broken = False

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """See `Looker`."""
        self._call(self.looker.pass_begin, batch)

    def record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """See `Looker`."""
        self._call(self.looker.record, stack, block, x, y)

    def refuse(self, stack: Stack, block: Block, error: CaptureError) -> None:
        """See `Looker`."""
        self._call(self.looker.refuse, stack, block, error)

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """See `Looker`."""
        if not self._broken:
            self._call(self.looker.pass_end, batch)
            return
        with contextlib.suppress(Exception):  # it lets go of hooks and modes there
            self.looker.pass_end(batch)

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        if self._broken:
            return
        try:
            method(*args)
        except Exception as error:
            self._broken = True
            self.failed(error)
