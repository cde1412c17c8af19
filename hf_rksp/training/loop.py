"""TrainingRun: the engine for a loop of your own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.identity import model_identity
from hf_rksp.config import KSSConfig
from hf_rksp.config.checks import require_kind, require_whole
from hf_rksp.doctor.folders import step_in
from hf_rksp.errors import InputError, RunStoppedError
from hf_rksp.json_data import unboxed
from hf_rksp.machine import versions
from hf_rksp.ranks import current_ranks, world_size
from hf_rksp.training.engine import Engine
from hf_rksp.training.gate import put_rates, rates_of
from hf_rksp.training.guard.guard import DivergenceGuard
from hf_rksp.training.guard.numbers import wide
from hf_rksp.training.kss.shaper import SpectralShaper
from hf_rksp.training.monitors.base import Monitor, require_parts
from hf_rksp.training.page import draw
from hf_rksp.training.recorder import RECORDER, Recorder
from hf_rksp.training.watch import Watch

logger = logging.getLogger(__name__)
#: Entries that each row of a history has.
_OF_A_ROW = ("kind", "step")


class TrainingRun:
    """Monitors, KSS and a history for a training loop of your own; what `RKSPTrainer` is for Trainer::

        with TrainingRun(model, "runs/first", steps=1000, monitors=[SpectralMonitor()], kss=KSSConfig()) as run:
            for batch in loader:
                loss = model(**batch).loss
                (loss + run.term()).backward()
                run.gradients_ready()
                optimizer.step()
                optimizer.zero_grad()
                run.step(loss=loss.item())

    With gradient accumulation call `microbatch` before each further batch of a step. All processes make the same calls.

    Args:
        model: the module itself, before or after DDP, FSDP2, DeepSpeed or ``torch.compile`` wrapped it; PEFT included.
        folder: of ``rksp_history.jsonl``.
        steps: optimizer steps of the whole run.
        monitors: what looks; see `hf_rksp.training.monitors`.
        kss: settings of KSS; ``None`` for no KSS.
        blocks: path(s) of the list(s) of residual blocks; found automatically in transformers models.
        setup: entries for the run row of the history, such as ``name`` and ``learning_rate``.
        state: `state_dict` of a checkpoint that the run goes on from.
        optimizer: of the run, for `CurvatureMonitor`, and for a `DivergenceGuard` that acts.
        rewind: loads weights and moments of a checkpoint of this run, for a `DivergenceGuard` that goes back. The learning rates
            stay where they are.
        scaler: `torch.amp.GradScaler` of a float16 run: a step that it skips by itself is no failing one.
        loss: the task's loss of what the model was called with and what `microbatch` was given, for `CurvatureMonitor`; the one
            that the model returns by default.

    Attributes:
        step_number: optimizer steps made so far.
        path: of the history.

    Raises:
        CaptureError: no residual blocks, and a part that needs them. A guard needs none.
        InputError: an argument is not as above; (in `step`) a guard that acts was not told the gradients.
        RunStoppedError: (in `step`) the guard has ended the run.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        steps: int,
        monitors: Sequence[Monitor] = (),
        kss: KSSConfig | None = None,
        blocks: str | Sequence[str] | None = None,
        setup: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        optimizer: object = None,
        loss: Callable[[Mapping[str, Any]], Tensor] | None = None,
        rewind: Callable[[Path], None] | None = None,
        scaler: Any = None,
    ) -> None:
        require_whole("steps", steps, 1)
        require_kind("kss", kss, KSSConfig, "KSSConfig(), or None for no KSS")
        require_parts(monitors)
        self.model, self.folder, self.steps = model, Path(folder), steps
        # A guard that may switch KSS on finds it asleep.
        sleeps = any(isinstance(part, DivergenceGuard) and "kss" in part.config.chosen for part in monitors)
        self.parts: list[Monitor] = [*monitors, *([SpectralShaper(config=kss, dormant=sleeps)] if kss else [])]
        self._guarded = any(isinstance(part, DivergenceGuard) for part in self.parts)
        self.blocks, self.setup, self._state = blocks, dict(setup or {}), dict(state or {})
        self.optimizer, self.loss, self.rewind, self.scaler = optimizer, loss, rewind, scaler
        self.step_number = int(self._state.get("step", 0))
        #: It was said that the run goes on after its steps.
        self._late = False
        self._recorder = Recorder()
        self._engine: Engine | None = None

    @property
    def path(self) -> Path | None:
        """Of the history."""
        return self._recorder.path

    @property
    def engine(self) -> Engine:
        """Of the run while it is open.

        Raises:
            RuntimeError: it is not.
        """
        if self._engine is None:
            raise RuntimeError("this TrainingRun is not open: use it in a with statement")
        return self._engine

    def __enter__(self) -> TrainingRun:
        alone = self._guarded and len(self.parts) == 1 and self.blocks is None
        stacks = () if alone else None  # a guard needs no blocks
        self._engine = Engine(Watch(self.model, self.blocks, stacks), self.parts, self._recorder)
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        watch = self.engine.watch
        watch.optimizer, watch.loss, watch.seed = self.optimizer, self.loss, int(self.setup.get("seed") or 0)
        watch.folder, watch.scaler = self.folder, self.scaler
        watch.rewind = self._rewound if self.rewind is not None else None
        self.engine.begin(self.step_number, self.steps, self._state)
        setup = {"world_size": world_size(), **self.setup}
        self._recorder.open(
            self.folder,
            self.step_number,
            {"model": model_identity(watch.model), "setup": setup, "versions": versions()},
            self.parts,
            self._state.get(RECORDER) or {},
            current_ranks().rank == 0,
        )
        if self.step_number < self.steps:
            self.engine.step_begin(self.step_number)

    def _rewound(self, folder: Path) -> None:
        """Weights and moments go back; the learning rates, which the optimizer's state has too, stay."""
        assert self.rewind is not None
        rates = rates_of(self.optimizer)
        self.rewind(folder)
        put_rates(self.optimizer, rates)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, RunStoppedError)  # which is an event already
        try:
            if error is None:
                self.engine.end()
            elif not stopped:
                self._recorder.event(
                    self.step_number, "run", "error", f"The run ended with {type(error).__name__}: {error}"
                )
        finally:
            self.engine.close()
            history = self._recorder.close()
            self._engine = None
        if stopped and history is not None:
            logger.error("%s", error)
            draw(history)

    def microbatch(self, withheld: Mapping[str, Any] | None = None) -> None:
        """A further batch of the same step follows; ``withheld`` are entries of it that the model is not given, such as labels."""
        self.engine.microbatch(withheld or {})
        self.engine.look()

    def term(self) -> Tensor:
        """What has to be added to the loss: 0, or the term of KSS if its schedule has one."""
        shapers = [part for part in self.parts if isinstance(part, SpectralShaper)]
        return shapers[0].term() if shapers else torch.zeros(())

    def gradients_ready(self, loss: Tensor | float | None = None) -> None:
        """The gradients of the step are there, before clipping.

        Args:
            loss: of the step, for a `DivergenceGuard`, if the model returns none: the mean over its batches, without the term of
                KSS.
        """
        self._say(loss)
        self.engine.gradients_ready()

    def _say(self, loss: Tensor | float | None) -> None:
        """Tell the guard a loss that the model does not return."""
        losses = self.engine.watch.losses
        if loss is None or losses or not self._guarded:
            return
        device = next(self.model.parameters()).device
        said = loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=wide(device))
        losses.append(
            said.reshape(()).to(device, non_blocking=True)
        )  # where the other numbers are: nothing waits for it

    def step(self, **logs: float) -> dict[str, float]:
        """The optimizer has made its step; ``logs`` go into the history with the numbers of all parts, which are returned.

        A guard that warns takes ``loss`` from them if the model returns none.

        Raises:
            InputError: an entry is no number, or is called as what a row of the history has already.
        """
        given = {name: _number(name, value) for name, value in logs.items()}
        loss = given.get("loss")
        self._say(loss if isinstance(loss, (int, float)) else None)
        if self.step_number >= self.steps and not self._late:
            self._late = True
            logger.warning(
                "The run goes on after steps=%d. This step was not watched, the next ones are. Pass all steps of the run",
                self.steps,
            )
        ended = self.step_number + 1 == self.steps
        self.engine.step_end(ended)
        self.engine.microbatch({})  # what was withheld was of this step
        self.step_number += 1
        numbers = self.engine.pop_logs()
        numbers |= {f"{part}/alarms": float(number) for part, number in self._recorder.alarms.items()}
        self._recorder.log(self.step_number, {**given, **numbers}, everything=True)
        if not ended:
            self.engine.step_begin(self.step_number)
        return numbers

    def saved(self, folder: str | os.PathLike[str]) -> None:
        """A checkpoint of the steps so far was written to ``folder``: `DivergenceGuard` will mark whether it is healthy.

        The name of the folder is ``checkpoint-N`` with the number of steps, in the folder of the run.

        Raises:
            InputError: it is not: the guard would not find the checkpoint when it is needed.
        """
        place = Path(folder)
        if step_in(place) != self.step_number or place.resolve().parent != self.folder.resolve():
            raise InputError(
                f"folder={str(folder)!r}: {self.step_number} steps were made, so pass "
                f"{str(self.folder / f'checkpoint-{self.step_number}')!r}, and call saved() after step()"
            )
        if current_ranks().rank == 0 and not place.is_dir():
            raise InputError(
                f"folder={str(folder)!r}: there is no such folder; save the checkpoint before saved() is called"
            )
        self.engine.saved(place)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, by part: plain JSON types."""
        return {"step": self.step_number, RECORDER: self._recorder.state_dict(), **self.engine.state_dict()}


def _number(name: str, value: Any) -> Any:
    """An entry of a log as the history has it."""
    if name in _OF_A_ROW:
        raise InputError(
            f"{name}={value!r}: a row of the history has an entry of this name already; choose another one"
        )
    found = unboxed(value)
    if found is not None and not isinstance(found, (bool, int, float, str)):
        raise InputError(f"{name}={str(value)[:100]}: pass a number, such as loss.item()")
    return found
