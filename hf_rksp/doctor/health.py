"""The checkpoint to go on from: the newest one that is whole, finite, and not known to be ill."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rksp.doctor.checkpoint import read_checkpoint
from hf_rksp.doctor.folders import checkpoints_in, step_in
from hf_rksp.doctor.mark import read_mark
from hf_rksp.errors import cause_of
from hf_rksp.inputs.damage import damage

#: What Trainer writes last.
STATE_NAME = "trainer_state.json"
#: Files that a run cannot go on from if they are cut short; each may be missing.
_NEEDED = ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin", "optimizer.pt", "scheduler.pt")


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
        wrong = mark.why if mark is not None and mark.step == step and mark.healthy is False else damage_in(folder)
        if not wrong and not (mark is not None and mark.step == step and mark.healthy):
            found = read_checkpoint(folder, step)
            parts = {"weights": found.weights, "moments": found.moments}
            kinds = [f"{name} {part.kind}" for name, part in parts.items() if part.kind in ("not finite", "unreadable")]
            wrong = ", ".join(kinds) or ("weights missing" if found.weights.kind == "missing" else "")
        if not wrong:
            return Choice(folder, left_out)
        left_out.append(f"{folder.name} ({wrong.rstrip('.')})")
    return Choice(None, left_out)


def healthy_before(run: Path, most: int, locked: int) -> tuple[int, Path] | None:
    """The last checkpoint of a run that is marked as healthy and whole, at step ``most`` or before; ``None`` if there is none."""
    for step, folder in newest_first(run, most):
        mark = read_mark(folder)
        if mark is not None and mark.healthy and mark.step == step and mark.locked == locked and not damage_in(folder):
            return step, folder
    return None


def damage_in(folder: Path) -> str:
    """What is missing or cut short in a checkpoint, seen without reading its numbers; nothing if it is whole.

    Trainer writes its state last, and the mark comes after that: a checkpoint with neither is half-written. The mark has the sizes
    of all files, in whatever format they are.
    """
    try:
        mark = read_mark(folder)
        for name, size in mark.files.items() if mark is not None else ():
            here = (folder / name).stat().st_size if (folder / name).is_file() else None
            if here is None or here < size:
                return f"{name} is {'missing' if here is None else f'cut short: {here} bytes instead of {size}'}"
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


def _cut(file: Path) -> str:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(file, "pt"):
                return ""
        except Exception:  # its error class has no public home in all versions
            return "is cut short, or no safetensors file"
    return "" if zipfile.is_zipfile(file) else "is cut short"


def rotate(run: Path, limit: int | None, best: str | None) -> list[Path]:
    """Delete the oldest checkpoints beyond ``limit``, as Trainer does, but for the last healthy one.

    The newest one, the best one and the last one that is marked as healthy stay. Those that are marked as ill go first.

    Returns:
        What was deleted.
    """
    if limit is None or limit <= 0:
        return []
    all_of_run = [folder for _, folder in newest_first(run)][::-1]
    marks = {folder: read_mark(folder) for folder in all_of_run}
    stay = {all_of_run[-1]} if all_of_run else set()
    if best is not None:
        stay |= {folder for folder in all_of_run if folder.absolute() == Path(best).absolute()}
    stay |= set([folder for folder, mark in marks.items() if mark is not None and mark.healthy][-1:])
    ill_first = sorted(all_of_run, key=lambda folder: getattr(marks[folder], "healthy", None) is not False)
    going = [folder for folder in ill_first if folder not in stay]
    going = going[: max(len(all_of_run) - max(limit, len(stay)), 0)]
    for folder in going:
        shutil.rmtree(folder, ignore_errors=True)
    return going
