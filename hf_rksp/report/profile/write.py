"""A profile -> files. All of them are built aside and moved into place, so a folder never holds half a report."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rksp.audit import Audit
from hf_rksp.errors import InputError, OutputError, SchemaError
from hf_rksp.files import _REMEDY, check_writable, put_files, reason_of
from hf_rksp.json_data import dumps, section
from hf_rksp.profile.model import ModelProfile
from hf_rksp.report.profile.html import render_html
from hf_rksp.report.profile.markdown import render_markdown
from hf_rksp.report.profile.schema import audit_from_dict, audit_to_dict, check_version
from hf_rksp.risk.thresholds import assess

FORMATS = ("json", "md", "html")


def write_report(
    result: Audit | ModelProfile | Mapping[str, Any],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    command: str | None = None,
) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` with ``figures/*.svg``, and ``report.html`` into ``folder``.

    Files of the same names are replaced, all or none; everything else in the folder stays.

    Args:
        result: an audit, the dict of one, or a profile: that gets the verdict of the published thresholds.
        folder: made if it is missing.
        formats: some of "json", "md", "html".
        command: recorded as ``setup["command"]`` if the profile names none.

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
    if isinstance(result, ModelProfile):
        result = Audit(result, assess(result))
    data = audit_to_dict(result) if isinstance(result, Audit) else dict(result)
    setup = section(section(data, "profile"), "setup")
    if command is not None and setup and not setup.get("command"):
        data["profile"] = {**data["profile"], "setup": {**setup, "command": command}}
    check_version(data)
    try:
        # A lone surrogate cannot be UTF-8; as backslash escape it stays the same JSON.
        raw = dumps(data).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError) as error:
        raise InputError(f"result: not plain JSON ({error}); pass an Audit, or what audit_to_dict made of it") from None
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


def read_report(path: str | os.PathLike[str]) -> Audit:
    """The profile and the verdict in a ``report.json``, or in the folder that holds one.

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
    return audit_from_dict(data)


def _render(data: Mapping[str, Any], raw: bytes, formats: Sequence[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Content of every file, and the main file of each format. ``report.json`` is last: if it is there, every file is there."""
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
