"""Files: written aside and moved into place, so that a folder never holds half of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hf_rksp.errors import OutputError

_REMEDY = "pass a folder that you may write to, on a disk with room"


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Make ``folder`` if it is missing and write to it once: called before any work starts.

    Raises:
        OutputError: it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=".rksp-", suffix=".partial") as probe:
            probe.write(b"\0")
    except (OSError, ValueError) as error:
        raise OutputError(f"folder={str(folder)!r}: cannot be written to ({reason_of(error)}); {_REMEDY}") from None
    return path


def put_files(files: Mapping[str, bytes], target: Path) -> None:
    """Write all of ``files`` aside, then move them into ``target``; on any exception the folder is as before."""
    with _aside(target) as aside:
        for number, content in enumerate(files.values()):
            with open(aside / f"{number}.new", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        made: list[Path] = []
        try:
            for number, name in enumerate(files):
                place = target / name
                if not place.parent.exists():
                    made.append(place.parent)
                    place.parent.mkdir()
                if place.exists():
                    shutil.copy2(place, aside / f"{number}.old")
                os.replace(aside / f"{number}.new", place)
        except BaseException:
            _undo([target / name for name in files], made, aside)
            raise


def put_file(path: Path, content: bytes) -> None:
    """Write one file aside and move it into place; a device, a pipe or what a link names is written to, and stays what it is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(content)
    else:
        put_files({path.name: content}, path.parent)


def _undo(places: Sequence[Path], made: Sequence[Path], aside: Path) -> None:
    """Put back what was there. A file whose new content still lies aside was not touched yet."""
    for number, place in enumerate(places):
        if (aside / f"{number}.new").exists():
            continue
        if (aside / f"{number}.old").exists():
            os.replace(aside / f"{number}.old", place)
        else:
            place.unlink(missing_ok=True)
    for folder in made:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder inside ``target``, so that moving is a rename; gone afterwards, whatever happens."""
    aside = Path(tempfile.mkdtemp(dir=target, prefix=".rksp-", suffix=".partial"))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def reason_of(error: Exception) -> str:
    """Why the system refused, without the path and the number that it puts before."""
    return getattr(error, "strerror", None) or str(error)
