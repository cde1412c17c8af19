"""The health mark of a checkpoint: what became of the run in the steps after it was saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_rksp.files import put_files
from hf_rksp.json_data import dumps, section

FILE_NAME = "rksp_health.json"


@dataclass(frozen=True)
class Mark:
    """Whether a run can go on from a checkpoint.

    Attributes:
        step: optimizer steps behind it.
        healthy: ``None`` as long as too few steps have come after it.
        why: a sentence if it is not healthy.
        locked: blocks that a depth warm-up had locked.
        run: which run, and which stretch of it between two resumptions, has saved it; empty if nobody has said.
        files: name -> bytes of each file of the checkpoint when it was saved.
    """

    step: int
    healthy: bool | None = None
    why: str = ""
    locked: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    run: str = ""


def read_mark(folder: Path) -> Mark | None:
    """The mark of a checkpoint; ``None`` if it has none that can be read."""
    try:
        data = json.loads((folder / FILE_NAME).read_text("utf-8"))
        step, healthy, why, locked = (data[name] for name in ("step", "healthy", "why", "locked"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    files = {str(name): size for name, size in section(data, "files").items() if isinstance(size, int)}
    known = isinstance(step, int) and healthy in (True, False, None) and isinstance(why, str)
    run = data.get("run", "")
    return Mark(step, healthy, why, locked, files, str(run)) if known and isinstance(locked, int) else None


def files_in(folder: Path) -> dict[str, int]:
    """Name -> bytes of each file of a checkpoint, but for the mark."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != FILE_NAME)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def whole_in(folder: Path, mark: Mark) -> bool:
    """Whether each file of the mark is there, and none is shorter; a file of JSON may have been written again."""
    for name, size in mark.files.items():
        file = folder / name
        if not file.is_file() or (file.suffix != ".json" and file.stat().st_size < size):
            return False
    return True


def drop_mark(folder: Path) -> None:
    """Take the mark out of a checkpoint that will be written again; nothing happens if there is none.

    Raises:
        OSError: it cannot be taken out.
    """
    (folder / FILE_NAME).unlink(missing_ok=True)


def write_mark(folder: Path, mark: Mark) -> None:
    """Put the mark into a checkpoint, unless the checkpoint is gone.

    Raises:
        OSError: it cannot be written.
    """
    if folder.is_dir():
        put_files({FILE_NAME: dumps(asdict(mark)).encode()}, folder)
