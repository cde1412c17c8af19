"""Results files: one row a line, appended as it comes, and read again after whatever stopped the writer.

A row is flat JSON as Python writes it (NaN and Infinity included): the fields of its job, what the experiment returned, and
`status` (ok or failed), `seconds`, `date`, `versions`. A failed row has `error` and `traceback` in place of results.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scripts.reproduce.harness.config import ExperimentError

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """All rows of a results file; a line that was cut short by a kill is left out."""
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def ok(row: Row) -> bool:
    """Whether the job of the row ran to its end. Rows from before the harness have no status: they all did."""
    return row.get("status", "ok") == "ok"


@contextlib.contextmanager
def appending(file: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends one line and flushes; the lock keeps a second writer out.

    A line that was cut short stays alone: the next row begins on a line of its own.

    Raises:
        ExperimentError: another process writes this file.
    """
    try:
        lock = FileLock(f"{file}.lock", timeout=0).acquire()
    except Timeout:
        raise ExperimentError(f"{file}: another run writes it; wait for its end, or stop it") from None
    with lock, file.open("ab+") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")

        def append(line: str) -> None:
            out.write(line.encode() + b"\n")
            out.flush()

        yield append
