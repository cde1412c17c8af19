"""Everything that a folder says of a run, put together: signs, checkpoints, the last healthy one, and what to try."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_rksp.doctor.advice import advice
from hf_rksp.doctor.checkpoint import Checkpoint, described, read_checkpoint
from hf_rksp.doctor.log import Log, read_run, step_in


@dataclass(frozen=True)
class Diagnosis:
    """What became of a run.

    Attributes:
        path: as given.
        log: what was logged.
        checkpoints: by step.
        healthy: the last checkpoint whose numbers are finite and that was saved before the run broke.
        advice: sentences.
    """

    path: Path
    log: Log
    checkpoints: tuple[Checkpoint, ...]
    healthy: Checkpoint | None
    advice: tuple[str, ...]

    def verdict(self, checkpoint: Checkpoint) -> str:
        """ "healthy", "saved after the first sign" or what is wrong with its numbers."""
        if not checkpoint.sound:
            kinds = {"weights": checkpoint.weights.kind, "moments": checkpoint.moments.kind}
            wrong = [f"{name} {kind}" for name, kind in kinds.items() if kind in ("not finite", "unreadable")]
            return ", ".join(wrong) or f"weights {checkpoint.weights.kind}"
        return "healthy" if _before(checkpoint, self.log.breaks_at) else "finite, saved after the run broke"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "log": None if self.log.run is None else str(self.log.run.source),
            "last_step": None if self.log.run is None else self.log.run.step,
            "planned_steps": None if self.log.run is None else self.log.run.planned,
            "signs": [asdict(sign) for sign in self.log.signs],
            "notes": list(self.log.notes),
            "checkpoints": [
                {
                    "path": str(one.path),
                    "step": one.step,
                    "verdict": self.verdict(one),
                    "weights": described(one.weights),
                    "moments": described(one.moments),
                }
                for one in self.checkpoints
            ],
            "healthy": None if self.healthy is None else str(self.healthy.path),
            "advice": list(self.advice),
        }


def diagnose(path: str | os.PathLike[str], step: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Read a run or a checkpoint. Nothing is written, and no code that a file holds is run.

    Args:
        path: the ``output_dir`` of a run, a checkpoint, or a ``trainer_state.json``.
        step: called with each checkpoint that is read.

    Raises:
        InputError: there is nothing that Trainer, or this package, has written.
    """
    log, folders = read_run(Path(path))
    found = []
    for folder in folders:
        step(f"reading {folder.name}")
        found.append(read_checkpoint(folder, step_in(folder)))
    sound = [one for one in found if one.sound and _before(one, log.breaks_at)]
    healthy = sound[-1] if sound else None
    return Diagnosis(Path(path), log, tuple(found), healthy, tuple(advice(log.run, log.signs, found, healthy)))


def _before(checkpoint: Checkpoint, breaks_at: int | None) -> bool:
    return breaks_at is None or checkpoint.step is None or checkpoint.step < breaks_at
