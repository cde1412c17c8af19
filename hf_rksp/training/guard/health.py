"""Keeps the health marks of a run's checkpoints, on the main process."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from hf_rksp.doctor.health import healthy_before, newest_first
from hf_rksp.doctor.mark import Mark, files_in, read_mark, write_mark
from hf_rksp.training.aside import reason

logger = logging.getLogger(__name__)


class Health:
    """A checkpoint is healthy after so many steps in their band have come after it, and ill if one of them fails before.

    Steps that the guard has left out count neither way: they have moved no weight.

    Args:
        run: folder of the run; ``None`` if nobody has said.
        steps: how many.
        main_process: whether this process writes; others keep nothing.
    """

    def __init__(self, run: Path | None, steps: int, main_process: bool = True) -> None:
        self._run, self._steps, self._main = run if main_process else None, steps, main_process
        #: Checkpoints without a verdict: folder -> (mark, steps in their band so far).
        self._open: dict[Path, tuple[Mark, int]] = {}

    def begin(self, step: int) -> None:
        """The run goes on from ``step``: checkpoints before it that have no verdict get one later."""
        self._open = {}
        for _, folder in newest_first(self._run, step) if self._run is not None and step else ():
            mark = read_mark(folder)
            if mark is not None and mark.healthy is None:
                self._open[folder] = (mark, 0)

    def saved(self, folder: Path, step: int, broken: list[str], locked: int) -> None:
        """A checkpoint was written; ``broken`` are its weights that are not finite."""
        if not self._main:
            return
        self._run = folder.parent  # a search over hyperparameters has a folder for each trial
        self._open.pop(folder, None)
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            self._write(folder, Mark(step, False, f"weights not finite: {broken[0]}{more}", locked, files_in(folder)))
            return
        mark = Mark(step, None, "", locked, files_in(folder))
        self._write(folder, mark)
        self._open[folder] = (mark, 0)

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

    def last(self, step: int, locked: int) -> tuple[int, Path] | None:
        """The last healthy checkpoint at ``step`` or before, with its step."""
        return None if self._run is None else healthy_before(self._run, step, locked)

    def _settle(self, folder: Path, mark: Mark) -> None:
        del self._open[folder]
        self._write(folder, mark)

    @staticmethod
    def _write(folder: Path, mark: Mark) -> None:
        try:
            write_mark(folder, mark)
        except OSError as error:
            logger.warning("%s has no health mark: %s", folder, reason(error))
