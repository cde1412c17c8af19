"""``rksp_history.jsonl``: what the monitor saw, one strict-JSON object a line, written as the run goes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_rksp.errors import OutputError
from hf_rksp.report.schema import plain
from hf_rksp.report.write import put_files

#: Of what Trainer logs, what is kept: numbers of the run, not of the machine, so that a resumed run leaves the same file.
_KEPT = re.compile(r"loss|grad_norm|learning_rate|epoch|(kss|rksp)/.*|eval_(?!runtime|samples_per|steps_per).*")


class HistoryWriter:
    """Appends rows; a resumed run first forgets what came after its checkpoint.

    Args:
        path: of the file; its folder is made.
        step: of the checkpoint that the run goes on from, 0 for a fresh run.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(step)
        except OSError as error:
            raise OutputError(
                f"output_dir={str(self.path.parent)!r}: {self.path.name} cannot be written ({error.strerror or error}); pass "
                "a folder that you may write to, or rksp_monitor=False"
            ) from None

    def _keep(self, step: int) -> None:
        """Leave the rows up to ``step`` alone; profiles of ``step`` itself were made after its checkpoint."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if step and self.path.exists() else []
        kept = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a kill
                continue
            if row["kind"] == "run" or row["step"] < step or (row["step"] == step and row["kind"] == "log"):
                kept.append(line + "\n")
        put_files({self.path.name: "".join(kept).encode()}, self.path.parent)
        self.empty = not kept

    def write(self, kind: str, **values: Any) -> None:
        """Append one row; what is not finite becomes null."""
        line = json.dumps(plain({"kind": kind} | values), ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.empty = False

    def write_log(self, step: int, logs: Mapping[str, Any]) -> None:
        """Append what Trainer logged, without times and speeds."""
        kept = {name: value for name, value in logs.items() if _KEPT.fullmatch(name)}
        if len(kept) > ("epoch" in kept):
            self.write("log", step=step, **kept)
