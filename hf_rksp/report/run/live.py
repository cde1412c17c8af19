"""The page of runs that go on: read on by offset, rendered again when there is something new."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError, SchemaError
from hf_rksp.files import reason_of
from hf_rksp.history.read import histories_in
from hf_rksp.history.schema import FILE_NAME
from hf_rksp.history.tail import Tail
from hf_rksp.report.run.numbers import Run
from hf_rksp.report.run.page import MOST_RUNS, named, render_runs

#: A page is rendered again after so many times what the last rendering took: the machine has a run to train.
_REST = 5.0


class Followed:
    """One run that is followed.

    A folder may have several histories. The one that was written last is followed, and later one that appears.

    Attributes:
        path: as given.
        file: the history that is followed; ``None`` before there is one.
        error: why it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, ""
        self.file: Path | None = None
        self._tail: Tail | None = None
        self._known: set[Path] = set()
        self._run: Run | None = None
        self._refused: tuple[int, int] | None = None

    def poll(self) -> bool:
        """Read what is new; whether there was anything."""
        try:
            return self._poll()
        except (OSError, SchemaError) as error:
            text = str(error) if isinstance(error, SchemaError) else f"{self.file or self.path}: {reason_of(error)}"
            changed, self.error, self._tail = text != self.error, text, None
            self._refused = self._stamp()
            return changed

    def _poll(self) -> bool:
        file = self._chosen()
        if file is None:
            return False
        if file != self.file:
            self.file, self._tail, self._run, self._refused = file, None, None, None
        if self._refused is not None and self._refused == self._stamp():
            return False  # it was broken, and nobody has touched it
        new = self._tail is None
        self._tail = self._tail or Tail(file)
        changed = self._tail.poll() or new or bool(self.error)
        self.error, self._refused = "", None
        return changed

    def _chosen(self) -> Path | None:
        if not self.path.is_dir():
            return self.path if self.path.is_file() else None
        found = histories_in(self.path)
        appeared = [file for file in found if file not in self._known]
        self._known |= set(found)
        if appeared:
            return appeared[-1]
        return self.file if self.file in found else (found[-1] if found else None)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = (self.file or self.path).stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    @property
    def begun(self) -> bool:
        """Whether there is something to draw."""
        return self._tail is not None and self._tail.begun

    def history(self) -> Any:
        """What was read so far."""
        assert self._tail is not None
        return self._tail.history()

    def run(self, history: Any) -> Run:
        """The run of ``history``, with the series that are known already."""
        self._run = Run(history, self._run)
        return self._run

    def state(self) -> dict[str, Any]:
        """Plain values for the browser."""
        stamp = self._stamp()
        return {
            "path": str(self.file or self.path),
            "begun": self.begun,
            "step": self._tail.last_step if self._tail else None,
            "age": None if stamp is None else max(0.0, round(time.time() - stamp[1] / 1e9, 1)),
            "error": self.error,
        }


class LivePage:
    """The bytes of `render_timeline` for histories that grow. Threads may share it.

    Args:
        paths: history files, or folders of runs; both may be made later.

    Raises:
        InputError: too many runs, or a path that can be no history.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        if not 1 <= len(paths) <= MOST_RUNS:
            raise InputError(f"{len(paths)} runs: pass 1 to {MOST_RUNS}")
        for path in map(Path, paths):
            if path.suffix != ".jsonl" and not path.is_dir():
                raise InputError(f"run={str(path)!r}: pass the output_dir of a run, or its {FILE_NAME}")
            if not path.parent.is_dir():
                raise InputError(f"run={str(path)!r}: there is no such folder; pass the output_dir of a run")
        self.runs = [Followed(Path(path)) for path in paths]
        #: Another server has another one, so that a page of an earlier one is not taken for the present one.
        self.identity = secrets.token_hex(8)
        self._version = self._announced = 0
        self._rendered: tuple[int, bytes | None] = (-1, None)
        self._took, self._ready = 0.0, 0.0
        self._lock = threading.Lock()

    def _poll(self) -> None:
        for run in self.runs:
            self._version += run.poll()

    def html(self) -> bytes | None:
        """The page as `write_timeline` would write it now; ``None`` if no run has begun. Runs that cannot be read are not on it."""
        with self._lock:
            self._poll()
            if self._rendered[0] != self._version:
                start = time.monotonic()
                self._rendered = self._version, self._render()
                self._took = time.monotonic() - start
                self._ready = time.monotonic() + _REST * self._took
            self._announced = self._version
            return self._rendered[1]

    def _render(self) -> bytes | None:
        shown = [run for run in self.runs if run.begun and not run.error]
        if not shown:
            return None
        histories = named([run.history() for run in shown])
        return render_runs([run.run(history) for run, history in zip(shown, histories, strict=True)]).encode(
            "utf-8", "replace"
        )

    def state(self) -> dict[str, object]:
        """What is read so far. ``version`` changes if it is worth while to ask for the page again."""
        with self._lock:
            self._poll()
            if time.monotonic() >= self._ready:
                self._announced = self._version
            return {
                "server": self.identity,
                "version": self._announced,
                "runs": [run.state() for run in self.runs],
            }
