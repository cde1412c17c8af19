"""Follow a history while it is written: each call reads what was appended since the last one."""

from __future__ import annotations

import os
from pathlib import Path

from hf_rksp.history.read import History, HistoryBuilder


class Tail:
    """Reads a growing history by its offset; a line that is not whole yet waits for its end.

    A file that was replaced, or is shorter than what was read of it, is read from its beginning.

    Args:
        path: of the history; it may not be there yet.

    Attributes:
        offset: bytes that were read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._begin(None)

    def _begin(self, file: tuple[int, int] | None) -> None:
        self.offset = 0
        self._file = file
        self._rest = b""
        self._builder = HistoryBuilder(self.path)

    def poll(self) -> bool:
        """Read what is new; whether there was a whole line.

        Raises:
            SchemaError: a line is broken, or of a newer schema version.
        """
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                same = (found.st_dev, found.st_ino)
                if same != self._file or found.st_size < self.offset:
                    self._begin(same)
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            return False
        self.offset += len(new)
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
