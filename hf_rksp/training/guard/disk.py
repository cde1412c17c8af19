"""A disk that is full while a checkpoint is written: the checkpoint is given up, and not the run."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from hf_rksp.doctor.health import newest_first
from hf_rksp.doctor.mark import files_in
from hf_rksp.ranks import current_ranks, from_main

#: Free bytes below which a write that failed has failed for that.
_ROOM = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """What became of a checkpoint.

    Attributes:
        full: whether the disk was full on this process.
    """

    def __init__(self, watched: bool) -> None:
        self.full, self._watched = False, watched

    def full_anywhere(self) -> bool:
        """Whether it was on any process. Every process has to call it."""
        return self._watched and any(current_ranks().gather(self.full))


@contextlib.contextmanager
def on_full_disk(folder: Path, watched: bool = True) -> Iterator[Disk]:
    """Write a checkpoint into ``folder``; if the disk is full, nothing is raised.

    Args:
        folder: of the checkpoint.
        watched: else everything is raised.
    """
    disk = Disk(watched)
    try:
        yield disk
    except Exception as error:
        if not (watched and _is_full(error, folder)):
            raise
        disk.full = True


def lacks_room(run: Path) -> bool:
    """Whether the disk has less room than the last checkpoint of the run takes; on the main process, which tells the others."""
    lacks = False
    if current_ranks().rank == 0:
        with contextlib.suppress(OSError):
            last = next((folder for _, folder in newest_first(run)), None)
            taken = sum(files_in(last).values()) if last is not None else 0
            usage = shutil.disk_usage(run)
            lacks = usage.total > 0 and usage.free < taken  # a file system without a size does not say
    return bool(from_main(lacks))


def _is_full(error: BaseException | None, folder: Path) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if "No space left" in str(error):  # safetensors and torch have errors of their own
            return True
        error = error.__cause__ or error.__context__
    try:
        return shutil.disk_usage(folder if folder.exists() else folder.parent).free < _ROOM
    except OSError:
        return False
