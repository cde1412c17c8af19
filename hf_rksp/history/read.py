"""The history of a training run: what was logged and profiled at which step, read from a JSON-lines file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_rksp.errors import InputError, SchemaError
from hf_rksp.json_data import finite, items, section

FILE_NAME = "rksp_history.jsonl"
SCHEMA_VERSION = 1
Row = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """One training run.

    Attributes:
        name: what the run is called.
        run: model, setup and versions, as the last "run" line has them.
        logs, profiles: the other lines by rising step, one a step.
    """

    name: str
    run: Row
    logs: tuple[Row, ...]
    profiles: tuple[Row, ...]


def read_history(path: str | os.PathLike[str]) -> History:
    """Read a history file, or that of a folder; of several runs that wrote into one folder, the last that was written.

    A later line replaces an earlier one of the same kind and step: after a resume, steps are made twice. Evaluation is the
    exception, because Trainer logs it in a line of its own beside the one of training: it is added to its step. A last line
    without its end was cut short by a kill, and is ignored.

    Raises:
        InputError: there is no such file.
        SchemaError: a line is broken, or the file is of another schema version.
    """
    file = Path(path)
    file = _newest(file) if file.is_dir() else file
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(
            f"path={str(path)!r}: {error.strerror or error}; pass a {FILE_NAME}, or the folder that holds it"
        ) from None
    run: Row | None = None
    steps: dict[str, dict[int, Row]] = {"log": {}, "profile": {}}
    for place, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            row = _row(raw)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if place == len(lines):
                break
            _refuse(file, place, f"not JSON ({error})")
        except (ValueError, RecursionError) as error:
            _refuse(file, place, str(error))
        kind = row["kind"]
        if kind == "run":
            _check_version(row, file, place)
            run = row
        elif run is None:
            _refuse(file, place, "a history begins with its run line")
        elif kind == "log" and _beside(row):
            steps["log"][row["step"]] = {**steps["log"].get(row["step"], {}), **_known(row)}
        else:
            steps[kind][row["step"]] = row
    if run is None:
        raise SchemaError(f"{file}: no run line is in this file; pass a {FILE_NAME} of a training run")
    logs, profiles = (tuple(rows[step] for step in sorted(rows)) for rows in steps.values())
    return History(_name(run, file), run, logs, profiles)


def histories_in(folder: Path) -> list[Path]:
    """The histories in a folder, the one that was written last at the end."""
    stem, end = FILE_NAME.split(".")
    found = [file for file in folder.glob(f"{stem}*.{end}") if file.is_file()]
    return sorted(found, key=lambda file: (file.stat().st_mtime_ns, len(file.name), file.name))


def _newest(folder: Path) -> Path:
    found = histories_in(folder)
    return found[-1] if found else folder / FILE_NAME


def is_training(row: Row) -> bool:
    """Whether a log line says something about training, and not about evaluation alone."""
    return not _beside(row)


def _row(raw: bytes) -> dict[str, Any]:
    row = json.loads(raw.decode("utf-8"), parse_constant=_constant)
    if not isinstance(row, dict) or row.get("kind") not in ("run", "log", "profile"):
        raise ValueError("neither a run, a log nor a profile")
    step = row.get("step")
    if row["kind"] != "run" and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ValueError(f"step={step!r} is no step")
    if row["kind"] == "profile" and not (
        isinstance(row.get("layers"), list) and all(isinstance(layer, dict) for layer in row["layers"])
    ):
        raise ValueError("a profile without its layers")
    return row


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")


def _beside(row: Row) -> bool:
    """A line of evaluation: it holds no number of training."""
    training = any(finite(row.get(name)) is not None for name in ("loss", "grad_norm", "learning_rate"))
    return not training and any(name.startswith("eval_") for name in row)


def _known(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None or name.startswith("eval_")}


def _check_version(row: Row, file: Path, place: int) -> None:
    version = row.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        _refuse(file, place, f"schema_version={version!r}, and this release reads {SCHEMA_VERSION}")


def _refuse(file: Path, place: int, why: str) -> NoReturn:
    raise SchemaError(f"{file}, line {place}: {why}; mend or remove the line, or record the run again")


def _name(run: Row, file: Path) -> str:
    """The setup's name (Trainer takes a folder for one where none is given), else the folder's."""
    name = section(run, "setup").get("name")
    if isinstance(name, str) and name.strip():
        return Path(name).name if Path(name).is_absolute() else name
    return file.resolve().parent.name or file.stem


def layers_at(profile: Row) -> dict[str, Row]:
    """Layers of a profile by name: the path, else stack and number."""
    return {
        str(layer.get("path") or f"{layer.get('stack') or 'layer'}.{layer.get('index', place)}"): layer
        for place, layer in enumerate(items(profile, "layers"))
    }
