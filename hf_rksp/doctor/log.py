"""What a run has logged, from all files that may hold it, and the signs of failure in that. No tensor is read here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rksp.doctor.folders import checkpoints_in
from hf_rksp.doctor.signs import Sign, in_order, signs_in, signs_of
from hf_rksp.doctor.state import FILE_NAME, LoggedRun, read_state, series_of
from hf_rksp.errors import InputError, SchemaError
from hf_rksp.files import reason_of
from hf_rksp.history.read import History, histories_in, read_history
from hf_rksp.report.run.series import Series


@dataclass(frozen=True)
class Log:
    """What was logged, and what was wrong with files that should hold a log.

    Attributes:
        run: ``None`` if no log was found.
        signs: by step.
        checkpoints: folders of the checkpoints, by step.
        notes: what could not be read.
    """

    run: LoggedRun | None
    signs: tuple[Sign, ...]
    checkpoints: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def breaks_at(self) -> int | None:
        """The step from which on the run is of no use."""
        steps = [sign.step for sign in self.signs if sign.breaks and sign.step is not None]
        return min(steps, default=None)


def read_log(path: Path) -> Log:
    """The log of a run.

    Args:
        path: the ``output_dir`` of a run, a checkpoint, or a ``trainer_state.json``.

    Raises:
        InputError: there is nothing that Trainer, or this package, has written; or the folder cannot be read.
        SchemaError: the file that was given is no state of Trainer.
    """
    try:
        if not path.exists():
            raise InputError(
                f"path={str(path)[:200]!r}: there is no such file or folder; pass the output_dir of a run, or a checkpoint"
            )
        if path.is_file():
            run = read_state(path)
            return Log(run, tuple(signs_of(run)), (), ())
        folders = checkpoints_in(path)
    except OSError as error:
        raise InputError(
            f"path={str(path)[:200]!r}: {reason_of(error)}; pass the output_dir of a run, or a checkpoint"
        ) from None
    log = _of_folder(path, folders)
    if log.run is None and not folders and not log.notes:
        raise InputError(
            f"path={str(path)!r}: it holds no {FILE_NAME}, no checkpoint-N and no history; pass the output_dir of a run, or a "
            "checkpoint"
        )
    return log


def _of_folder(path: Path, checkpoints: Sequence[Path]) -> Log:
    notes: list[str] = []
    own = _state(path, notes)
    newest = next((run for folder in reversed(checkpoints) if (run := _state(folder, notes)) is not None), None)
    if own is not None and newest is not None and not _same_run(own, newest):
        notes.append(f"{own.source}: it is of another run than {newest.source}, and is left out")
        own = None
    run = max((one for one in (own, newest) if one is not None), key=lambda one: one.step, default=None)
    history = _history(path, notes)
    if run is not None and history is not None:
        run, history = _of_one_run(run, history, histories_in(path)[-1], notes)
    if history is not None and history.logs:
        run = _longer(run, history, path)
    elif history is not None and run is None:  # Trainer logs every 500 steps unless it is asked to
        known = (row["step"] for row in (*history.readings, *history.events) if isinstance(row.get("step"), int))
        run = LoggedRun(path, max(known, default=0), None)
    signs = signs_of(run) if run is not None and run.series else []
    signs += signs_in([dict(row) for row in history.events]) if history is not None else []
    return Log(run, tuple(in_order(signs)), tuple(checkpoints), tuple(notes))


def _state(folder: Path, notes: list[str]) -> LoggedRun | None:
    try:
        return read_state(folder / FILE_NAME) if (folder / FILE_NAME).exists() else None
    except (SchemaError, OSError) as error:
        notes.append(str(error))
        return None


def _same_run(one: LoggedRun, other: LoggedRun) -> bool:
    """Whether both have logged the same losses at the steps that both have."""
    first, second = dict(one.of("loss")), dict(other.of("loss"))
    common = first.keys() & second.keys()
    return not common or sum(first[step] == second[step] for step in common) > len(common) / 2


def _of_one_run(
    run: LoggedRun, history: History, file: Path, notes: list[str]
) -> tuple[LoggedRun | None, History | None]:
    """Both if they are of one run, else the one that was written last: a folder may hold what an earlier run has left."""
    rows = [dict(row) for row in history.logs]
    if not rows or _same_run(run, LoggedRun(file, 0, None, series_of(rows))):
        return run, history
    if file.stat().st_mtime_ns > run.source.stat().st_mtime_ns:
        notes.append(
            f"{run.source}: it is of an earlier run than {file.name}, and is left out. The checkpoints of both are listed"
        )
        return None, history
    notes.append(f"{file}: it is of an earlier run than {run.source}, and is left out")
    return run, None


def _longer(run: LoggedRun | None, history: History, path: Path) -> LoggedRun:
    """The log with what the history has after its end: a history is written at once, and a state with a checkpoint."""
    rows = [dict(row) for row in history.logs]
    last = max(row["step"] for row in rows)
    if run is not None and last <= run.step:
        return run
    if run is None:
        return LoggedRun(path, last, None, series_of(rows))
    series = {key: one.copy() for key, one in run.series.items()}
    for key, one in series_of([row for row in rows if row["step"] > run.step]).items():
        for step, value in one:
            series.setdefault(key, Series()).add(step, value)
    return LoggedRun(run.source, last, run.planned, series)


def _history(path: Path, notes: list[str]) -> History | None:
    try:
        return read_history(path) if histories_in(path) else None
    except (SchemaError, InputError, OSError) as error:
        notes.append(str(error))
        return None
