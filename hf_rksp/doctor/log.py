"""What a run has logged, from all files that may hold it, and the signs of failure in that. No tensor is read here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rksp.doctor.signs import Sign, in_order, signs_in, signs_of
from hf_rksp.doctor.state import FILE_NAME, LoggedRun, read_state, series_of
from hf_rksp.errors import InputError, SchemaError
from hf_rksp.history.read import History, histories_in, read_history

_NUMBER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Log:
    """What was logged, and what was wrong with files that should hold a log.

    Attributes:
        run: ``None`` if no log was found.
        signs: by step.
        notes: what could not be read.
    """

    run: LoggedRun | None
    signs: tuple[Sign, ...]
    notes: tuple[str, ...]

    @property
    def breaks_at(self) -> int | None:
        """The step from which on the run is of no use."""
        steps = [sign.step for sign in self.signs if sign.breaks and sign.step is not None]
        return min(steps, default=None)


def read_run(path: Path) -> tuple[Log, list[Path]]:
    """The log of a run, and the folders of its checkpoints.

    Args:
        path: the ``output_dir`` of a run, a checkpoint, or a ``trainer_state.json``.

    Raises:
        InputError: there is nothing that Trainer, or this package, has written.
    """
    if not path.exists():
        raise InputError(
            f"path={str(path)!r}: there is no such file or folder; pass the output_dir of a run, or a checkpoint"
        )
    folders = checkpoints_in(path)
    log = _read_log(path, folders)
    if log.run is None and not folders and not log.notes:
        raise InputError(
            f"path={str(path)!r}: it holds no {FILE_NAME}, no checkpoint-N and no history; pass the output_dir of a run, or a "
            "checkpoint"
        )
    return log, folders


def checkpoints_in(path: Path) -> list[Path]:
    """The folders ``checkpoint-N`` in a run by rising N; ``path`` itself if it is a checkpoint."""
    if path.is_file():
        return []
    found = [(step, folder) for folder in path.iterdir() if (step := step_in(folder)) is not None and folder.is_dir()]
    if found:
        return [folder for _, folder in sorted(found)]
    holds = any(path.glob("*.safetensors")) or any(path.glob("*.bin")) or any(path.glob("global_step*"))
    return [path] if holds or step_in(path) is not None else []


def step_in(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; ``None`` if there is none."""
    match = _NUMBER.fullmatch(folder.resolve().name)
    return int(match[1]) if match else None


def _read_log(path: Path, checkpoints: Sequence[Path]) -> Log:
    """The longest log: of the run, or of its newest checkpoint that can be read; and the alarms of its history."""
    files = [path] if path.is_file() else [folder / FILE_NAME for folder in (path, *reversed(checkpoints))]
    notes, runs = [], []
    for file in dict.fromkeys(files):
        if not file.exists():
            continue
        try:
            runs.append(read_state(file))
        except SchemaError as error:
            if path.is_file():
                raise
            notes.append(str(error))
            continue
        if len(runs) > 1 or file.parent != path:
            break  # older checkpoints hold the beginning of the same log
    history = _history(path, notes)
    run = max(runs, key=lambda one: one.step, default=None)
    if run is None and history is not None and history.logs:
        rows = [dict(row) for row in history.logs]
        run = LoggedRun(path, max(row["step"] for row in rows), None, series_of(rows))
    signs = signs_of(run) if run is not None else []
    signs += signs_in([dict(row) for row in history.events]) if history is not None else []
    return Log(run, tuple(in_order(signs)), tuple(notes))


def _history(path: Path, notes: list[str]) -> History | None:
    if path.is_file() or not histories_in(path):
        return None
    try:
        return read_history(path)
    except SchemaError as error:
        notes.append(str(error))
        return None
