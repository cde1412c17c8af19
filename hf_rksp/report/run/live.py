"""The page of runs that go on: read on by offset, rendered again when there is something new."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from hf_rksp.errors import InputError, SchemaError
from hf_rksp.history.read import histories_in
from hf_rksp.history.schema import FILE_NAME
from hf_rksp.history.tail import Tail
from hf_rksp.report.run.numbers import Run
from hf_rksp.report.run.page import MOST_RUNS, named, render_runs


class LivePage:
    """The bytes of `render_timeline` for histories that grow. Threads may share it.

    Args:
        paths: history files, or folders of runs; of several histories in a folder, the one that was written last.

    Attributes:
        version: changes if the page does.

    Raises:
        InputError: too many runs, or a path that can be no history.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        if not 1 <= len(paths) <= MOST_RUNS:
            raise InputError(f"{len(paths)} runs: pass 1 to {MOST_RUNS}")
        self.paths = [Path(path) for path in paths]
        for path in self.paths:
            if not path.exists() and not path.parent.is_dir():
                raise InputError(f"run={str(path)!r}: there is no such folder; pass the output_dir of a run")
            if path.is_file() and path.suffix != ".jsonl":
                raise InputError(f"run={str(path)!r}: pass a {FILE_NAME}, or the folder that holds it")
        self.version = 0
        self._tails: list[Tail | None] = [None] * len(paths)
        self._runs: dict[Path, Run] = {}
        self._rendered: tuple[int, bytes] = (-1, b"")
        self._lock = threading.Lock()

    def poll(self) -> int:
        """Read what is new; the version of the page."""
        with self._lock:
            for place, path in enumerate(self.paths):
                file = _newest(path)
                tail = self._tails[place]
                if file is None:
                    continue
                if tail is None or tail.path != file:
                    tail = self._tails[place] = Tail(file)
                    self.version += 1
                try:
                    self.version += tail.poll()
                except SchemaError:
                    self._tails[place] = None
                    raise
            return self.version

    def html(self) -> bytes | None:
        """The page as `write_timeline` would write it; ``None`` if no run has begun.

        Raises:
            SchemaError: a line of a history is broken.
        """
        version = self.poll()
        with self._lock:
            if self._rendered[0] == version:
                return self._rendered[1]
            tails = [tail for tail in self._tails if tail is not None and tail.offset]
            histories = [tail.history() for tail in tails if tail.begun]
            if not histories:
                return None
            runs = []
            for tail, history in zip([tail for tail in tails if tail.begun], named(histories), strict=True):
                runs.append(Run(history, self._runs.get(tail.path)))
                self._runs[tail.path] = runs[-1]
            self._rendered = version, render_runs(runs).encode("utf-8", "replace")
            return self._rendered[1]

    def state(self) -> dict[str, object]:
        """What is read so far: version, and the last step of each run."""
        version = self.poll()
        with self._lock:
            steps = [tail.last_step if tail else None for tail in self._tails]
        return {"version": version, "steps": steps}


def _newest(path: Path) -> Path | None:
    """The history of a run; ``None`` if there is none yet."""
    if path.is_dir():
        found = histories_in(path)
        return found[-1] if found else None
    return path if path.is_file() else None
