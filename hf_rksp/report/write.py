"""A profile -> files. All of them are built aside and moved into place, so a folder never holds half a report."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError, OutputError, SchemaError
from hf_rksp.profile.model import ModelProfile
from hf_rksp.report.html import render_html
from hf_rksp.report.markdown import render_markdown
from hf_rksp.report.schema import dumps, profile_from_dict, profile_to_dict
from hf_rksp.report.view import check_version

FORMATS = ("json", "md", "html")
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


def write_report(
    profile: ModelProfile | Mapping[str, Any],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    command: str | None = None,
) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` with ``figures/*.svg``, and ``report.html`` into ``folder``.

    Files of the same names are replaced, all or none; everything else in the folder stays.

    Args:
        profile: a profile, or the dict of one.
        folder: made if it is missing.
        formats: some of "json", "md", "html".
        command: recorded as ``setup["command"]`` where the profile names none.

    Returns:
        Format -> path of its file.

    Raises:
        InputError: an unknown format, or a dict that is not plain JSON. SchemaError: a dict of another schema.
        OutputError: the folder cannot be written to. ``report.json`` is then saved in the folder for temporary files if
            that is possible, and the message says where.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"formats={formats!r}: {unknown[0]!r} is none of {', '.join(FORMATS)}")
    data = profile_to_dict(profile) if isinstance(profile, ModelProfile) else dict(profile)
    if command is not None and isinstance(data.get("setup"), Mapping) and not data["setup"].get("command"):
        data["setup"] = {**data["setup"], "command": command}
    check_version(data)
    try:
        # A lone surrogate cannot be UTF-8; as backslash escape it stays the same JSON.
        raw = dumps(data).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"profile: not plain JSON ({error}); pass a ModelProfile, or what profile_to_dict made of it"
        ) from None
    files, paths = _render(data, raw, formats)
    target = Path(folder)
    try:
        check_writable(target)
        put_files(files, target)
    except OSError as error:
        reason = (
            str(error) if isinstance(error, OutputError) else f"folder={str(folder)!r}: {reason_of(error)}; {_REMEDY}"
        )
        raise OutputError(f"{reason}. {_rescue(raw)}") from None
    return {name: target / path for name, path in paths.items()}


def read_report(path: str | os.PathLike[str]) -> ModelProfile:
    """The profile in a ``report.json``, or in the folder that holds one.

    Raises:
        InputError: there is no such file.
        SchemaError: it is no report of this schema version.
    """
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"path={str(path)!r}: {reason_of(error)}; pass a report.json, or the folder that holds it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{file}: not JSON ({error}); run `rksp audit` again") from None
    return profile_from_dict(data)


def _render(data: Mapping[str, Any], raw: bytes, formats: Sequence[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Content of every file, and the main file of each format. ``report.json`` is last: where it lies, all lies."""
    files: dict[str, bytes] = {}
    if "md" in formats:
        text, figures = render_markdown(data)
        files |= {f"figures/{name}": figure.encode() for name, figure in figures.items()}
        files["report.md"] = text.encode()
    if "html" in formats:
        files["report.html"] = render_html(data).encode()
    if "json" in formats:
        files["report.json"] = raw
    return files, {name: f"report.{name}" for name in FORMATS if name in formats}


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


def _rescue(raw: bytes) -> str:
    """Save what was computed where temporary files go, and say where."""
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix="rksp-report-", suffix=".json")
        with open(handle, "wb") as file:
            file.write(raw)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        return f"report.json could not be saved in {tempfile.gettempdir()} either ({reason_of(error)})"
    return f"Nothing is lost: the numbers are in {name}"


def reason_of(error: Exception) -> str:
    """Why the system refused, without the path and the number that it puts before."""
    return getattr(error, "strerror", None) or str(error)
