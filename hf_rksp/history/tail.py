"""Follow a history while it is written: each call reads what was appended since the last one."""

from __future__ import annotations

import os
from pathlib import Path

from hf_rksp.history.read import History, HistoryBuilder

#: Bytes at the beginning, and before the place where reading goes on, that have to be what they were.
_HEAD, _END = 4096, 64


class Tail:
    """Reads a growing history by its offset; a line that is not whole yet waits for its end.

    A file that does not begin, or does not go on, as it did is another one and is read from its beginning.

    Args:
        path: of the history; it may not be there yet.

    Attributes:
        offset: bytes that were read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._begin()

    def _begin(self) -> None:
        self.offset = 0
        self._head = self._end = self._rest = b""
        self._builder = HistoryBuilder(self.path)

    def poll(self) -> bool:
        """Read what is new; whether there was a whole line.

        Raises:
            SchemaError: a line is broken, or of a newer schema version. OSError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                head = file.read(len(self._head))
                file.seek(self.offset - len(self._end))
                if head != self._head or file.read(len(self._end)) != self._end:
                    self._begin()
                    file.seek(0)
                new = file.read()
        except FileNotFoundError:
            return False
        self.offset += len(new)
        self._head += new[: _HEAD - len(self._head)]
        self._end = (self._end + new)[-_END:]
        *whole, self._rest = (self._rest + new).split(b"\n")
        for line in whole:
            self._builder.feed(line)
        return bool(whole)

    @property
    def begun(self) -> bool:
        """Whether the run row was read."""
        return self._builder.begun

    @property
    def last_step(self) -> int | None:
        """The largest step of the rows so far."""
        return self._builder.last_step

    def history(self) -> History:
        """All whole lines so far.

        Raises:
            SchemaError: there was no run row yet.
        """
        return self._builder.history()
