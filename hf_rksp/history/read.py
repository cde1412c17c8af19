"""The history of a training run, read row by row: what was logged and measured, and what happened, at which step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from hf_rksp.errors import InputError, SchemaError
from hf_rksp.history.schema import FILE_NAME, Kind, Row, parse, refusal
from hf_rksp.json_data import finite, items, section
from hf_rksp.quantities import Quantity


@dataclass(frozen=True)
class History:
    """One training run.

    Attributes:
        name: what the run is called.
        run: model, setup and versions, as the last run row has them.
        logs: by rising step, one per step.
        readings: of all monitors by rising step, one per monitor and step.
        events: in the order of the file, those of abandoned attempts included.
        abandoned: logs and readings of attempts that the run went back from, in the order of the file.
        quantities: what the readings hold, by monitor and name.
        others: rows of kinds that this release does not know.
    """

    name: str
    run: Row
    logs: tuple[Row, ...]
    readings: tuple[Row, ...] = ()
    events: tuple[Row, ...] = ()
    abandoned: tuple[Row, ...] = ()
    quantities: Mapping[str, Quantity] = field(default_factory=dict)
    others: tuple[Row, ...] = ()

    def of(self, monitor: str) -> tuple[Row, ...]:
        """The readings of one monitor."""
        return tuple(row for row in self.readings if row["monitor"] == monitor)

    @cached_property
    def spectra(self) -> tuple[Row, ...]:
        """The readings of monitors that measure eigenvalues."""
        having = {row["monitor"] for row in self.readings if any("eigenvalues" in layer for layer in row["layers"])}
        return tuple(row for row in self.readings if row["monitor"] in having)


class HistoryBuilder:
    """Takes the lines of a history file one by one, so that a file that grows is read once.

    A later row replaces an earlier one of the same kind, monitor and step. Evaluation is the exception, because Trainer logs it
    in a line of its own: it is added to its step. A line without its end was cut short by a kill; it may be the last one, or
    stand before a run row, where the run was resumed.

    Args:
        file: for messages, and for the name of the run if it has none.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._place = 0
        self._cut: str | None = None
        self._run: Row | None = None
        self._quantities: dict[str, Quantity] = {}
        self._logs: dict[int, Row] = {}
        self._readings: dict[tuple[int, str], Row] = {}
        self._events: list[Row] = []
        self._abandoned: list[Row] = []
        self._others: list[Row] = []

    @property
    def begun(self) -> bool:
        """Whether there was a run row."""
        return self._run is not None

    @property
    def last_step(self) -> int | None:
        """The step of the last log or reading so far; ``None`` before the first."""
        log, (reading, _) = next(reversed(self._logs), -1), next(reversed(self._readings), (-1, ""))
        return max(log, reading) if max(log, reading) >= 0 else None

    def feed(self, line: bytes) -> None:
        """Take the next line.

        Raises:
            SchemaError: the line is broken, or of a newer schema version.
        """
        self._place += 1
        if not line.strip():
            return
        try:
            row = parse(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self._check_cut()
            self._cut = f"line {self._place}: not JSON ({error})"
            return
        except (ValueError, RecursionError) as error:
            self._refuse(f"line {self._place}: {error}")
        if row["kind"] == Kind.RUN:
            self._cut = None
        self._check_cut()
        self._take(row)

    def history(self) -> History:
        """What was fed so far.

        Raises:
            SchemaError: there was no run row.
        """
        if self._run is None:
            raise SchemaError(f"{self.file}: no run line is in this file; pass a {FILE_NAME} that a training run wrote")
        return History(
            _name(self._run, self.file),
            self._run,
            tuple(self._logs[step] for step in sorted(self._logs)),
            tuple(self._readings[key] for key in sorted(self._readings)),
            tuple(self._events),
            tuple(self._abandoned),
            dict(self._quantities),
            tuple(self._others),
        )

    def _take(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        if kind == Kind.RUN:
            if why := refusal(row.get("schema_version")):
                self._refuse(f"line {self._place}: {why}")
            self._run = row
            for key, description in section(row, "quantities").items():
                if isinstance(description, Mapping):
                    self._quantities[key] = Quantity.described(key, description)
        elif self._run is None:
            self._refuse(f"line {self._place}: a history begins with its run line")
        elif kind == Kind.LOG:
            before = self._logs.get(row["step"], {}) if _beside(row) else {}
            self._logs[row["step"]] = {**before, **_known(row)} if _beside(row) else row
        elif kind == Kind.READING:
            self._readings[row["step"], row["monitor"]] = _Reading(row)
        elif kind == Kind.EVENT:
            self._events.append(row)
            if isinstance(to := row.get("to"), int):
                self._go_back(to)
        else:
            self._others.append(row)

    def _go_back(self, step: int) -> None:
        """Set aside what came after ``step``: those steps are made again."""
        self._abandoned += [self._logs.pop(late) for late in sorted(self._logs) if late > step]
        self._abandoned += [self._readings.pop(late) for late in sorted(self._readings) if late[0] > step]

    def _check_cut(self) -> None:
        if self._cut is not None:
            self._refuse(self._cut)

    def _refuse(self, why: str) -> NoReturn:
        raise SchemaError(f"{self.file}, {why}; mend or remove the line, or record the run again")


def read_history(path: str | os.PathLike[str]) -> History:
    """Read a history file, or that of a folder; of several runs that wrote into one folder, the last that was written.

    Raises:
        InputError: there is no such file.
        SchemaError: a line is broken, or of a newer schema version.
    """
    file = Path(path)
    file = _newest(file) if file.is_dir() else file
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(
            f"path={str(path)!r}: {error.strerror or error}; pass a {FILE_NAME}, or the folder that holds it"
        ) from None
    builder = HistoryBuilder(file)
    for line in lines:
        builder.feed(line)
    return builder.history()


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


def _beside(row: Row) -> bool:
    """A line of evaluation: it holds no number of training."""
    training = any(finite(row.get(name)) is not None for name in ("loss", "grad_norm", "learning_rate"))
    return not training and any(name.startswith("eval_") for name in row)


def _known(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None or name.startswith("eval_")}


def _name(run: Row, file: Path) -> str:
    """The setup's name (Trainer takes a folder for one if none is given), else the folder's."""
    name = section(run, "setup").get("name")
    if isinstance(name, str) and name.strip():
        return Path(name).name if Path(name).is_absolute() else name
    return file.resolve().parent.name or file.stem


class _Reading(dict[str, Any]):
    """A reading of a history, which keeps its layers by name: many parts of a page ask for them."""

    @cached_property
    def by_name(self) -> dict[str, Row]:
        return _by_name(self)


def layers_at(profile: Row) -> dict[str, Row]:
    """Layers of a reading by name: the path, else stack and number."""
    return profile.by_name if isinstance(profile, _Reading) else _by_name(profile)


def _by_name(profile: Row) -> dict[str, Row]:
    return {
        str(layer.get("path") or f"{layer.get('stack') or 'layer'}.{layer.get('index', place)}"): layer
        for place, layer in enumerate(items(profile, "layers"))
    }
