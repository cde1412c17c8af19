"""Everything that a folder says of a run, put together: signs, checkpoints, the last healthy one, and what to try."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_rksp.doctor.advice import advice
from hf_rksp.doctor.checkpoint import Checkpoint, described, read_checkpoint
from hf_rksp.doctor.folders import step_in
from hf_rksp.doctor.log import Log, read_log

#: The verdict on a checkpoint that a run can go on from.
HEALTHY = "healthy"
#: A checkpoint is not healthy if its largest weight is above this and so many times that of an earlier one.
_LARGE, _GROWN = 10.0, 10.0


@dataclass(frozen=True)
class Diagnosis:
    """What became of a run.

    Attributes:
        path: as given.
        log: what was logged.
        checkpoints: by step.
        healthy: the last checkpoint whose numbers are finite, whose weights have not exploded, and that was saved before the run
            broke.
        advice: sentences.
    """

    path: Path
    log: Log
    checkpoints: tuple[Checkpoint, ...]
    healthy: Checkpoint | None
    advice: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether the run broke, or a checkpoint is damaged."""
        return self.log.breaks_at is not None or any(one.damaged for one in self.checkpoints)

    def verdict(self, checkpoint: Checkpoint) -> str:
        """See `verdict_of`."""
        return verdict_of(checkpoint, self.checkpoints, self.log.breaks_at)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "log": None if self.log.run is None else str(self.log.run.source),
            "last_step": None if self.log.run is None else self.log.run.step,
            "planned_steps": None if self.log.run is None else self.log.run.planned,
            "broken": self.broken,
            "signs": [asdict(sign) for sign in self.log.signs],
            "notes": list(self.log.notes),
            "checkpoints": [
                {
                    "path": str(one.path),
                    "step": one.step,
                    "verdict": self.verdict(one),
                    "ill": one.ill,
                    "weights": described(one.weights),
                    "moments": described(one.moments),
                }
                for one in self.checkpoints
            ],
            "healthy": None if self.healthy is None else str(self.healthy.path),
            "advice": list(self.advice),
        }


def diagnose(
    path: str | os.PathLike[str], log: Log | None = None, step: Callable[[str], None] = lambda text: None
) -> Diagnosis:
    """Read a run or a checkpoint. Nothing is written, and no code that a file holds is run.

    Args:
        path: the ``output_dir`` of a run, a checkpoint, or a ``trainer_state.json``.
        log: of it, if it was read already.
        step: called with each checkpoint that is read.

    Raises:
        InputError: there is nothing that Trainer, or this package, has written.
    """
    path, log = Path(path), log or read_log(Path(path))
    found = []
    for folder in log.checkpoints:
        step(f"reading {folder.name}")
        found.append(read_checkpoint(folder, step_in(folder)))
    healthy = next((one for one in reversed(found) if verdict_of(one, found, log.breaks_at) == HEALTHY), None)
    alone = list(log.checkpoints) == [path]
    return Diagnosis(path, log, tuple(found), healthy, tuple(advice(log.run, log.signs, found, healthy, alone)))


def verdict_of(checkpoint: Checkpoint, all_of_run: Sequence[Checkpoint], breaks_at: int | None) -> str:
    """What a checkpoint is good for: `HEALTHY`, when it was saved, or what is wrong with its numbers.

    Args:
        checkpoint: one of ``all_of_run``. If its weights are in a format that is not read, the mark of the guard counts.
        all_of_run: by step.
        breaks_at: the step from which on the run is of no use.
    """
    parts = {"weights": checkpoint.weights.kind, "moments": checkpoint.moments.kind}
    wrong = [f"{name} {kind}" for name, kind in parts.items() if kind in ("not finite", "unreadable")]
    if not wrong and checkpoint.marked and checkpoint.weights.kind in ("missing", "not read"):
        return HEALTHY if _before(checkpoint, breaks_at) else "marked as healthy, saved after the run broke"
    if wrong or not checkpoint.sound:
        return ", ".join(wrong) or f"weights {checkpoint.weights.kind}"
    if checkpoint.ill:
        return f"marked as ill: {checkpoint.ill}"
    if not _before(checkpoint, breaks_at):
        return "finite, saved after the run broke"
    times = _grown(checkpoint, all_of_run)
    return f"finite, largest weight {times:.3g} times as large as before" if times > _GROWN else HEALTHY


def _grown(checkpoint: Checkpoint, all_of_run: Sequence[Checkpoint]) -> float:
    """Its largest weight, as a multiple of the smallest such number of an earlier checkpoint; 1 for weights that are small."""
    earlier = [one.weights.largest for one in all_of_run[: list(all_of_run).index(checkpoint)] if one.sound]
    if not earlier or checkpoint.weights.largest < _LARGE or not min(earlier):
        return 1.0
    return checkpoint.weights.largest / min(earlier)


def _before(checkpoint: Checkpoint, breaks_at: int | None) -> bool:
    return breaks_at is None or checkpoint.step is None or checkpoint.step < breaks_at
