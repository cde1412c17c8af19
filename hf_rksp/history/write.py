"""``rksp_history.jsonl``: what the monitor saw, one strict-JSON object a line, written as the run goes."""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from hf_rksp.errors import OutputError
from hf_rksp.files import put_files, reason_of
from hf_rksp.json_data import plain

logger = logging.getLogger(__name__)
#: Of what Trainer logs, what is kept: numbers of the run, not of the machine, so that a resumed run leaves the same file.
_KEPT = re.compile(
    r"loss|grad_norm|learning_rate|epoch|(kss|rksp|spectrum)/.*|eval_(?!runtime|samples_per|steps_per).*"
)


class HistoryWriter:
    """Appends rows. A fresh run gets a file of its own, a resumed run goes on in its file without what came after its checkpoint.

    A row that cannot be written is said once; from then on nothing is written, and the run goes on.

    Args:
        path: of the file; its folder is made. A fresh run takes ``NAME_2.jsonl``, ``NAME_3.jsonl``, ... where it is taken.
        step: of the checkpoint that the run goes on from, 0 for a fresh run.
        again: a file that this run has begun before, without a step in it; it is begun anew.
        mark: the `mark` of the checkpoint. A file that does not begin so is another run's, and left alone.

    Attributes:
        path: of the file that is written.
        empty: whether it has no row yet.
        barren: whether it has no row of a step yet.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], step: int = 0, again: Path | None = None, mark: Sequence[int] = ()
    ) -> None:
        self.path = Path(path)
        self.broken = False
        #: Length and checksum of what was written, for a checkpoint.
        self.mark = (0, 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path == again or (step and self._is_own(mark)):
                self._keep(step)
            else:
                self._take(again)
                self.empty = self.barren = True
        except OSError as error:
            raise OutputError(
                f"output_dir={str(self.path.parent)!r}: {self.path.name} cannot be written ({reason_of(error)}); pass "
                "a folder that you may write to, or rksp_monitor=False"
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
                self._keep(0)
                return
            with suppress(FileExistsError):
                self.path.open("x").close()
                break
            self.path = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
        if self.path != wanted:
            logger.warning(
                "%s holds the history of another run, which is kept; this run writes %s", wanted, self.path.name
            )

    def _keep(self, step: int) -> None:
        """Leave the rows up to ``step`` alone; profiles of ``step`` itself were made after its checkpoint."""
        raw = self.path.read_bytes() if step and self.path.is_file() else b""
        kept = []
        for line in raw.decode("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
                if row["kind"] == "run" or row["step"] < step or (row["step"] == step and row["kind"] == "log"):
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # cut short by a kill or a full disk
                continue
        content = "".join(kept).encode()
        put_files({self.path.name: content}, self.path.parent)
        self.mark = (len(content), zlib.crc32(content))
        self.empty = self.barren = not kept

    def write(self, kind: str, **values: Any) -> None:
        """Append one row; what is not finite becomes null."""
        if self.broken:
            return
        text = json.dumps(plain({"kind": kind} | values), ensure_ascii=False, allow_nan=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")  # a lone surrogate cannot be UTF-8
        try:
            # Not "a", which would make a file anew that was taken away: rows without a beginning are no history.
            with self.path.open("r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(line)
        except OSError as error:
            self.broken = True
            logger.warning(
                "%s cannot be written any more (%s): the run goes on, and its profiles are in the logs alone. Make room, or pass "
                "an output_dir that you may write to",
                self.path,
                reason_of(error),
            )
            return
        self.mark = (self.mark[0] + len(line), zlib.crc32(line, self.mark[1]))
        self.empty = False
        self.barren = self.barren and kind == "run"

    def write_log(self, step: int, logs: Mapping[str, Any]) -> None:
        """Append what Trainer logged, without times and speeds."""
        kept = {name: value for name, value in logs.items() if _KEPT.fullmatch(name)}
        if len(kept) > ("epoch" in kept):
            self.write("log", step=step, **kept)
