"""``rksp_history.jsonl``: rows are appended as the run goes; what was written is never changed."""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from hf_rksp.errors import OutputError
from hf_rksp.files import reason_of
from hf_rksp.history.schema import SCHEMA_VERSION, Kind
from hf_rksp.json_data import plain

logger = logging.getLogger(__name__)
#: Of what Trainer logs, what is kept: numbers of the run, not of the machine, so that a resumed run leaves the same rows.
_KEPT = re.compile(r"loss|grad_norm|learning_rate|epoch|eval_(?!runtime|samples_per|steps_per).*")

#: Kinds of rows that say nothing of a step that was made.
_BARREN = (Kind.RUN, Kind.EVENT)


class HistoryWriter:
    """Appends rows. A fresh run gets a file of its own; a resumed run goes on in its file, as its next attempt.

    If a row cannot be written a warning says so once; from then on nothing is written, and the run goes on.

    Args:
        path: of the file; its folder is made. A fresh run takes ``NAME_2.jsonl``, ``NAME_3.jsonl``, ... if it is taken.
        step: of the checkpoint that the run goes on from, 0 for a fresh run.
        again: a file that this run has begun before, without a row of a step in it; the run goes on in it.
        mark: the `mark` of the checkpoint. A file that does not begin so is another run's, and left alone.
        prefixes: names of the parts whose numbers are kept of what is logged, such as ``kss`` for ``kss/loss``.

    Attributes:
        path: of the file that is written.
        attempt: 0 for the first, one more with each resume.
        barren: whether it has no row of a step yet.
        mark: length and checksum of what was written, for a checkpoint.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        step: int = 0,
        again: Path | None = None,
        mark: Sequence[int] = (),
        prefixes: Collection[str] = (),
    ) -> None:
        self.path, self._step, self._prefixes = Path(path), step, tuple(f"{name}/" for name in prefixes)
        self.broken = False
        self.attempt, self.barren, self.mark = 0, True, (0, 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not (self.path == again or (step and self._is_own(mark))):
                self._take(again)
            self._read()
        except OSError as error:
            raise OutputError(
                f"output_dir={str(self.path.parent)!r}: {self.path.name} cannot be written ({reason_of(error)}); pass "
                "a folder that you may write to"
            ) from None

    def _is_own(self, mark: Sequence[int]) -> bool:
        if not mark or not self.path.is_file():
            return True
        size, checksum = mark
        raw = self.path.read_bytes()[:size]
        return len(raw) == size and zlib.crc32(raw) == checksum

    def _take(self, again: Path | None) -> None:
        """The first free name, made at once: another run that starts now takes another one."""
        wanted = self.path
        for number in count(2):
            if self.path == again:
                break
            with suppress(FileExistsError):
                self.path.open("x").close()
                break
            self.path = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
        if self.path != wanted:
            logger.warning(
                "%s holds the history of another run, which is kept; this run writes %s", wanted, self.path.name
            )

    def _read(self) -> None:
        """What the file has so far: a line that was cut short by a kill gets its end."""
        self.path.touch()
        raw = self.path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
            raw += b"\n"
        for line in raw.splitlines():
            with suppress(ValueError, TypeError, AttributeError):
                kind = json.loads(line).get("kind")
                self.attempt += kind == Kind.RUN and not self.barren
                self.barren = self.barren and kind in (*_BARREN, None)
        self.attempt += not self.barren
        self.mark = (len(raw), zlib.crc32(raw))

    def begin(self, **description: Any) -> None:
        """Append the run row, and the event of a resume.

        Args:
            description: model, setup, versions and quantities.
        """
        self.write(Kind.RUN, schema_version=SCHEMA_VERSION, attempt=self.attempt, **description)
        if self.attempt:
            self.event(
                self._step,
                "run",
                "resume",
                f"Training resumed from the checkpoint at step {self._step:,}.",
                to=self._step,
                attempt=self.attempt,
            )

    def event(self, step: int, by: str, what: str, text: str, **more: Any) -> None:
        """Append what happened at ``step``: which part did or saw it, what it was in a word, and one sentence."""
        self.write(Kind.EVENT, step=step, by=by, what=what, **more, text=text)

    def write(self, kind: str, **values: Any) -> None:
        """Append one row; what is not finite becomes null."""
        if self.broken:
            return
        text = json.dumps(plain({"kind": str(kind)} | values), ensure_ascii=False, allow_nan=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")  # a lone surrogate cannot be UTF-8
        try:
            # Not "a", which would make a file anew that was taken away: rows without a beginning are no history.
            with self.path.open("r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(line)
        except OSError as error:
            self.broken = True
            logger.warning(
                "%s cannot be written any more (%s): the run goes on, and its readings are in the logs alone. Make room, or pass "
                "an output_dir that you may write to",
                self.path,
                reason_of(error),
            )
            return
        self.mark = (self.mark[0] + len(line), zlib.crc32(line, self.mark[1]))
        self.barren = self.barren and kind in _BARREN

    def log(self, step: int, logs: Mapping[str, Any], everything: bool = False) -> None:
        """Append what was logged: without times and speeds as Trainer logs them, or ``everything``."""
        kept = {
            name: value
            for name, value in logs.items()
            if everything or _KEPT.fullmatch(name) or name.startswith(self._prefixes)
        }
        if len(kept) > ("epoch" in kept):
            self.write(Kind.LOG, step=step, **kept)
