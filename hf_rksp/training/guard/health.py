"""Keeps the health marks of a run's checkpoints, on the process that writes them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_rksp.doctor.health import healthy_before, newest_first
from hf_rksp.doctor.mark import Mark, files_in, read_mark, write_mark
from hf_rksp.training.aside import reason

logger = logging.getLogger(__name__)


class Health:
    """A checkpoint is healthy after so many steps in their band have come after it, and ill if one of them fails before.

    Steps that the guard has left out count neither way: they have moved no weight.

    A folder may hold checkpoints of other runs, or of a stretch of this run that was given up by a resumption from an earlier
    checkpoint. So each stretch has a name, which its marks carry, and a checkpoint keeps the names of the stretches that led to it.

    Args:
        run: folder of the run; ``None`` if nobody has said.
        steps: how many.
        writes: whether this process writes checkpoints; others keep nothing.
    """

    def __init__(self, run: Path | None, steps: int, writes: bool = True) -> None:
        self._run, self._steps, self._writes = run if writes else None, steps, writes
        #: Checkpoints without a verdict: folder -> (mark, steps in their band so far).
        self._open: dict[Path, tuple[Mark, int]] = {}
        #: Name of each stretch of this run -> step at which the next one went on from it; none for the present one.
        self._stretches: dict[str, int | None] = {}

    def begin(self, step: int, past: Mapping[str, int | None]) -> None:
        """The run goes on from ``step``: checkpoints before it that have no verdict get one later.

        Args:
            step: of the optimizer; 0 for a new run.
            past: stretches of the checkpoint that the run goes on from, from `stretches_in`.
        """
        self._stretches = {name: step if end is None else end for name, end in past.items()} if step else {}
        self._stretches[uuid.uuid4().hex[:12]] = None
        self._open = {}
        for _, folder in newest_first(self._run, step) if self._run is not None and step else ():
            mark = read_mark(folder)
            if mark is not None and mark.healthy is None and self.owns(mark):
                self._open[folder] = (mark, 0)

    def owns(self, mark: Mark) -> bool:
        """Whether a checkpoint was saved by this run, on the way to where the run is now."""
        if mark.run not in self._stretches:
            return False
        end = self._stretches[mark.run]
        return end is None or mark.step <= end

    def saved(self, folder: Path, step: int, broken: list[str], locked: int) -> None:
        """A checkpoint was written; ``broken`` are its weights that are not finite."""
        if not self._writes:
            return
        self._run = folder.parent  # a search over hyperparameters has a folder for each trial
        self._open.pop(folder, None)
        mark = Mark(step, None, "", locked, files_in(folder), list(self._stretches)[-1] if self._stretches else "")
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            mark = replace(mark, healthy=False, why=f"weights not finite: {broken[0]}{more}")
        else:
            self._open[folder] = (mark, 0)
        self._write(folder, mark)

    def judged(self, step: int, findings: list[str]) -> None:
        """``step`` was made, and failed if there are ``findings``."""
        for folder, (mark, count) in list(self._open.items()):
            if step < mark.step:  # made before it was saved
                continue
            if findings:
                self._settle(folder, replace(mark, healthy=False, why=f"step {step} failed: {findings[0]}"))
            elif count + 1 >= self._steps:
                self._settle(folder, replace(mark, healthy=True))
            else:
                self._open[folder] = (mark, count + 1)

    def rolled_back(self, to: int) -> None:
        """The run went back: what was saved later led nowhere."""
        for folder, (mark, _) in list(self._open.items()):
            if mark.step > to:
                self._settle(folder, replace(mark, healthy=False, why=f"the run went back to step {to}"))

    def stopped(self, step: int) -> None:
        """The run was stopped: what has no verdict yet was saved too shortly before."""
        for folder, (mark, _) in list(self._open.items()):
            self._settle(folder, replace(mark, healthy=False, why=f"the run was stopped at step {step}"))

    def last(self, step: int, locked: int) -> tuple[int, Path] | None:
        """The last healthy checkpoint of this run at ``step`` or before, with its step."""
        return None if self._run is None else healthy_before(self._run, step, locked, self.owns)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"stretches": dict(self._stretches)}

    def _settle(self, folder: Path, mark: Mark) -> None:
        del self._open[folder]
        self._write(folder, mark)

    @staticmethod
    def _write(folder: Path, mark: Mark) -> None:
        try:
            write_mark(folder, mark)
        except OSError as error:
            logger.warning("%s has no health mark: %s", folder, reason(error))


def stretches_in(state: Mapping[str, Any]) -> dict[str, int | None]:
    """The stretches in a `Health.state_dict`."""
    return {str(name): None if end is None else int(end) for name, end in state["stretches"].items()}
