"""The health mark of a checkpoint: what became of the run in the steps after it was saved."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_rksp.files import put_files
from hf_rksp.json_data import dumps

FILE_NAME = "rksp_health.json"


@dataclass(frozen=True)
class Mark:
    """Whether a run can go on from a checkpoint.

    Attributes:
        step: optimizer steps behind it.
        healthy: ``None`` as long as too few steps have come after it.
        why: a sentence if it is not healthy.
        locked: blocks that a depth warm-up had locked.
    """

    step: int
    healthy: bool | None = None
    why: str = ""
    locked: int = 0


def read_mark(folder: Path) -> Mark | None:
    """The mark of a checkpoint; ``None`` if it has none that can be read."""
    try:
        data = json.loads((folder / FILE_NAME).read_text("utf-8"))
        step, healthy, why, locked = (data[name] for name in ("step", "healthy", "why", "locked"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(step, int) and healthy in (True, False, None) and isinstance(why, str)
    return Mark(step, healthy, why, locked) if known and isinstance(locked, int) else None


def write_mark(folder: Path, mark: Mark) -> None:
    """Put the mark into a checkpoint, unless the checkpoint is gone.

    Raises:
        OSError: it cannot be written.
    """
    if folder.is_dir():
        put_files({FILE_NAME: dumps(asdict(mark)).encode()}, folder)
