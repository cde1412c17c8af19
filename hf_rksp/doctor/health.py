"""The checkpoint to go on from: the newest one that is whole, finite, and not known to be ill."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rksp.doctor.checkpoint import read_checkpoint
from hf_rksp.doctor.folders import checkpoints_in, holds_weights, step_in
from hf_rksp.doctor.mark import Mark, read_mark, whole_in
from hf_rksp.errors import cause_of
from hf_rksp.inputs.damage import damage

#: Why a new learning rate does nothing in a run that goes on, and what to do.
RATE_IS_KEPT = (
    "Trainer restores the old learning rate from the checkpoint. To use another one, delete optimizer.pt and scheduler.pt there; "
    "the moments then begin anew"
)
#: What Trainer writes last.
STATE_NAME = "trainer_state.json"
#: Files that a run cannot go on from if they are cut short; each may be missing.
_NEEDED = (
    "model*.safetensors",
    "adapter_model.safetensors",
    "*/adapter_model.safetensors",  # an adapter with a name of its own
    "pytorch_model*.bin",
    "optimizer.pt",
    "scheduler.pt",
)
#: Beginnings of the names of files that Trainer goes on without.
_DROPPED = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")


def newest_first(run: Path, most: int | None = None) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a run with their steps, the last one first; ``most`` is the largest step."""
    folders = checkpoints_in(run) if run.is_dir() else []
    for folder in reversed(folders):
        step = step_in(folder)
        if step is not None and folder != run and (most is None or step <= most):
            yield step, folder


@dataclass(frozen=True)
class Choice:
    """The checkpoint to go on from (``None`` if there is none), and why each newer one is left out."""

    folder: Path | None
    left_out: Sequence[str]


def to_go_on_from(run: Path) -> Choice:
    """The newest checkpoint of a run that is not known to be ill.

    A checkpoint that was marked as healthy is taken if its files are whole. One without a mark, or with too few steps after it, is
    read: its weights and moments have to be finite.
    """
    left_out: list[str] = []
    for step, folder in newest_first(run):
        mark = read_mark(folder)
        healthy = mark.healthy if mark is not None and mark.step == step else None
        wrong = mark.why if mark is not None and healthy is False else _wrong_in(folder, step, bool(healthy))
        if not wrong:
            return Choice(folder, left_out)
        left_out.append(f"{folder.name} ({wrong.rstrip('.')})")
    return Choice(None, left_out)


def whole_and_finite(run: Path) -> Path | None:
    """The newest checkpoint of a run that can be read and whose numbers are finite, whatever its mark says."""
    return next((folder for step, folder in newest_first(run) if not _wrong_in(folder, step)), None)


def _wrong_in(folder: Path, step: int, marked: bool = False) -> str:
    """Why a run cannot go on from a checkpoint; nothing if it can. Numbers are not read if it is ``marked`` as healthy."""
    if wrong := damage_in(folder):
        return wrong
    if marked and holds_weights(folder):
        return ""
    found = read_checkpoint(folder, step)
    parts = {"weights": found.weights, "moments": found.moments}
    kinds = [f"{name} {part.kind}" for name, part in parts.items() if part.kind in ("not finite", "unreadable")]
    return ", ".join(kinds) or ("weights missing" if found.weights.kind == "missing" else "")


def healthy_before(run: Path, most: int, locked: int, owns: Callable[[Mark], bool]) -> tuple[int, Path] | None:
    """The last checkpoint of a run that is marked as healthy and has all its files, at step ``most`` or before.

    Args:
        run: the folder of its checkpoints.
        locked: blocks that a depth warm-up has locked now.
        owns: whether a checkpoint is of this run.

    Returns:
        Its step and its folder; ``None`` if there is none.
    """
    for step, folder in newest_first(run, most):
        mark = read_mark(folder)
        if mark is None or not (mark.healthy and mark.step == step and mark.locked == locked and owns(mark)):
            continue
        if not damage_in(folder) and whole_in(folder, mark):
            return step, folder
    return None


def damage_in(folder: Path) -> str:
    """What is cut short in a checkpoint, seen without reading its numbers; nothing if it is whole.

    Trainer writes its state last, and the mark comes after that: a checkpoint with neither is half-written. The mark has the sizes
    of all files, in whatever format they are. Moments that somebody has deleted since then, to save space, are no damage: Trainer
    goes on without them.
    """
    try:
        mark = read_mark(folder)
        for name, size in mark.files.items() if mark is not None else ():
            file = folder / name
            if not file.is_file() and not _may_go(file):
                return f"{name} is missing"
            if file.is_file() and file.suffix != ".json" and file.stat().st_size < size:
                return f"{name} is cut short: {file.stat().st_size} bytes instead of {size}"
        if (folder / STATE_NAME).exists():
            if not isinstance(json.loads((folder / STATE_NAME).read_text("utf-8")), dict):
                return f"{STATE_NAME} is no state of Trainer"
        elif mark is None:
            return f"{STATE_NAME} is missing, so it is half-written"
        for pattern in _NEEDED:
            for file in folder.glob(pattern):
                if words := damage(file) or _cut(file):
                    return f"{file.name} {words}"
    except (OSError, ValueError, RecursionError) as error:
        return f"{STATE_NAME} cannot be read: {cause_of(error)}" if isinstance(error, ValueError) else cause_of(error)
    return ""


def _may_go(file: Path) -> bool:
    """Whether Trainer goes on without a file."""
    return file.name.startswith(_DROPPED) or file.suffix in (".json", ".txt", ".md", ".jinja", ".model")


def _cut(file: Path) -> str:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(file, "pt"):
                return ""
        except Exception:  # its error class has no public home in all versions
            return "is cut short, or no safetensors file"
    return "" if zipfile.is_zipfile(file) else "is cut short"


def rotate(
    run: Path,
    limit: int | None,
    best: str | None,
    saved: Path | None = None,
    owns: Callable[[Mark], bool] = lambda mark: True,
) -> list[Path]:
    """Delete the oldest checkpoints beyond ``limit``, as Trainer does, but for the last healthy one.

    What was just saved, the best one and the last one that is marked as healthy stay. Those that are marked as ill go first. As in
    Trainer, age is that of the files: a folder may hold checkpoints of higher steps that an earlier run has left.

    Args:
        run: the folder of the checkpoints.
        limit: how many stay; ``None`` for all.
        best: the best one.
        saved: what was just saved; else the youngest one stays.
        owns: whether a checkpoint is of this run: the last healthy one of another run does not count.

    Returns:
        What was deleted.
    """
    if limit is None or limit <= 0:
        return []
    by_age = sorted((folder for _, folder in newest_first(run)), key=_age)
    marks = {folder: read_mark(folder) for folder in by_age}
    stay = {folder for folder in by_age if saved is not None and folder.absolute() == saved.absolute()} or set(
        by_age[-1:]
    )
    if best is not None:
        stay |= {folder for folder in by_age if folder.absolute() == Path(best).absolute()}
    stay |= set([folder for folder, mark in marks.items() if mark is not None and mark.healthy and owns(mark)][-1:])
    ill_first = sorted(by_age, key=lambda folder: getattr(marks[folder], "healthy", None) is not False)
    going = [folder for folder in ill_first if folder not in stay]
    going = going[: max(len(by_age) - max(limit, len(stay)), 0)]
    for folder in going:
        shutil.rmtree(folder, ignore_errors=True)
    return going


def _age(folder: Path) -> tuple[float, int]:
    """When a checkpoint was saved: its state is written last, and a mark that comes later does not touch that file."""
    file = folder / STATE_NAME
    with contextlib.suppress(OSError):
        return (file if file.is_file() else folder).stat().st_mtime, step_in(folder) or 0
    return 0.0, step_in(folder) or 0
