"""The loop of a training run as its parts see it, whoever drives it.

    attach(model)                          # before the first call of the model, so that torch.compile sees the hooks
    for step in range(first, last):
        step_begin(step)                   # which monitors are due; a probe runs now
        for batch in microbatches:
            microbatch(batch)              # what the trainer withholds from the model is set here, once
            forward                        # one tap: monitors that are due look, KSS takes the transitions
            backward                       # KSS acts on the gradients at the states
        gradients_ready(step)              # interventions act on the gradients, alike on every process
        optimizer.step()
        step_end(step)                     # readings of all monitors, added up over the processes together; rows of history
        log, save                          # logs of all parts; one state for the checkpoint
    close()                                # no hook left, also after an exception

    event            plain Trainer (RKSPCallback)   RKSPTrainer                           loop of your own (TrainingRun)
    attach           on_train_begin                 _inner_training_loop, or the first     with
                                                    batch, if only a pass shows blocks
    step_begin       on_step_begin                  the same                               after step() of the last step
    microbatch       hooks on the model, again      training_step                          hooks on the model
                     after on_substep_end
    gradients_ready  on_pre_optimizer_step (after   end of training_step of the last       before optimizer.step()
                     clipping)                      batch, before clipping
    step_end         on_step_end                    the same                               step()
    state            state of Trainer               rksp_state.json in the checkpoint      state_dict()
    saved            on_save                        end of _save_checkpoint                saved()
    close            on_train_end                   also after an exception                end of with

With RKSPCallback alone parts can only look: a callback cannot change the loss. Under DeepSpeed its own optimizer says
gradients_ready, because the step is made inside backward; see `hf_rksp.training.gate`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from hf_rksp.capture.tap import Looker
from hf_rksp.errors import InputError, RkspError, RunStoppedError
from hf_rksp.ranks import current_ranks, sums_over_ranks, world_size
from hf_rksp.training.gate import StepGate
from hf_rksp.training.monitors.base import Intervention, Measuring, Monitor, Reading
from hf_rksp.training.recorder import Recorder
from hf_rksp.training.unharmed import Unharmed
from hf_rksp.training.watch import Watch

logger = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")


class Engine:
    """Calls the parts of a run in their order, and keeps what they measured.

    Args:
        watch: the tap and the layouts that the parts share.
        parts: monitors and interventions. Monitors measure before interventions act.
        recorder: keeps readings and events.

    Raises:
        InputError: two parts have one name.
    """

    def __init__(self, watch: Watch, parts: Sequence[Monitor], recorder: Recorder) -> None:
        self.watch, self.parts, self.recorder = watch, tuple(parts), recorder
        self.step = self.last_step = 0
        #: The first step has not begun.
        self._fresh = True
        self.readings: list[Reading] = []
        self._due: list[Monitor] = []
        #: Steps were made, and the end of the run was not said.
        self._unended = False
        self._main = current_ranks().rank == 0
        names = [part.name for part in self.parts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"two parts of a run are called {twice[0]!r}: their numbers and states have one name; leave one out"
            )
        watch.dormant = [part for part in self.interventions if part.dormant]
        self.parts = tuple(part for part in self.parts if self._attached(part))

    def _attached(self, part: Monitor) -> bool:
        """Whether the part can watch this run."""
        try:
            part.attach(self.watch)
        except Exception as error:
            self._failed(part, "the whole run", error)
            with contextlib.suppress(Exception):
                part.close()
            return False
        if part.aside is not None:
            part.aside.listener = functools.partial(self._left_out, part.name)
        return True

    def _left_out(self, part: str, text: str) -> None:
        self.recorder.event(self.step, part, "left_out", text)

    def _failed(self, part: Monitor, what: str, error: Exception) -> None:
        """A monitor has raised what nobody has foreseen, inside an ``except``: it leaves ``what`` out, and the run goes on.

        What acts on the run has to be right. And other processes wait for this one in a sum: an error that they do not have must
        not be kept from the launcher.
        """
        if isinstance(error, RkspError) or isinstance(part, Intervention) or part.aside is None or world_size() > 1:
            raise error
        part.aside(what, error, self.watch.layers)
        # What it has seen of this step is not whole, so there is no reading of it.
        self._due = [one for one in self._due if one is not part]

    def _asked(self, part: Monitor, what: str, call: Callable[[], T], default: U) -> T | U:
        """What the part answers; ``default`` if it fails."""
        try:
            return call()
        except Exception as error:
            self._failed(part, what, error)
            return default

    def begin(self, step: int, last_step: int, state: Mapping[str, Any]) -> None:
        """The run begins.

        Args:
            step: optimizer steps that are behind it.
            last_step: optimizer steps of the whole run.
            state: `state_dict` of the checkpoint; empty for a fresh run.
        """
        self.step, self.last_step = step, last_step
        if self.watch.optimizer is not None and self.interventions:
            self.watch.gate = StepGate(self.watch.optimizer, self._ready, self.watch.scaler)
        self._load(state)
        for part in self.parts:
            part.begin(step)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The parts that may act."""
        return tuple(part for part in self.parts if isinstance(part, Intervention))

    def step_begin(self, step: int) -> None:
        """The optimizer step ``step`` begins: monitors that are due look at its first forward pass."""
        self.step = step
        self._due = [
            part
            for part in self.parts
            if self._asked(part, "a step", functools.partial(part.due, step, self.last_step), False)
        ]
        self.readings += self._measure("step_begin", self._due)
        self._fresh = False
        self.look()

    def look(self) -> None:
        """Let monitors that are due look at the next forward pass: called for each microbatch."""
        lookers: list[Looker] = []
        for part in self._due:
            looker = self._asked(part, "a step", functools.partial(part.looker, self.step), None)
            if looker is not None:
                lookers.append(Unharmed(looker, functools.partial(self._failed, part, "a pass")))
        self.watch.tap.look(lookers)

    def microbatch(self, withheld: Mapping[str, Any]) -> None:
        """Say which entries of the coming batch the model itself is not given."""
        self.watch.withheld = withheld

    def gradients_ready(self) -> None:
        """Let interventions act on the gradients of the step. Under DeepSpeed they have done so within the backward pass."""
        if not (self.watch.gate and self.watch.gate.says_ready):
            self._ready()

    def _ready(self) -> None:
        for part in self.interventions:
            part.gradients_ready(self.step, self.readings)

    def step_end(self, ended: bool = False) -> list[Reading]:
        """The optimizer has made its step; ``ended`` if it was the last one of the run.

        Returns:
            What the monitors measured, on the main process.

        Raises:
            RunStoppedError: an intervention ends the run, on every process.
        """
        self.watch.tap.look_away()
        due, self._due = self._due, []
        for part in self.interventions:
            part.step_made()
        found = self._measure("step_end", due)
        self.step += 1
        self._unended = not ended
        if ended:
            found += self._measure("run_end", self.parts)
        self.readings = found
        if self.watch.stopped is not None:
            self.recorder.event(self.step - 1, "run", "stopped", self.watch.stopped)
            raise RunStoppedError(self.watch.stopped)
        return found

    def end(self) -> None:
        """The run is over, perhaps before its last step. Every process has to call it."""
        unended, self._unended = self._unended, False
        if unended:
            self._measure("run_end", self.parts)

    def saved(self, folder: Path) -> None:
        """A checkpoint of the step just made is in ``folder``. Every process has to call it."""
        for part in self.interventions:
            part.saved(self.step, folder)

    def not_saved(self, folder: Path) -> None:
        """The disk was full: there is no checkpoint of this step, and the run goes on."""
        text = f"{folder.name} was not saved: the disk is full. The run goes on."
        if self._main:
            logger.warning("Step %d: %s", self.step, text)
        self.recorder.event(self.step, "run", "not saved", text)

    def _measure(self, when: Literal["step_begin", "step_end", "run_end"], parts: Sequence[Monitor]) -> list[Reading]:
        """Run what the parts measure ``when`` to its end, side by side, and record what came out."""

        def failed(place: int, error: Exception) -> None:
            if self._fresh:  # bad batches of a probe are refused before any work
                raise error
            self._failed(parts[place], "a reading", error)

        measuring = [self._measuring(part, when) for part in parts]
        found = [reading for reading in together(measuring, failed) if reading is not None]
        for reading in found:
            self.recorder.reading(reading)
        return found

    def _measuring(self, part: Monitor, when: str) -> Measuring:
        """What the part measures; what it does at once is done when the first answer is asked for."""
        reading: Reading | None = yield from getattr(part, when)(self.step, self._main)
        return reading

    def pop_logs(self) -> dict[str, float]:
        """Numbers of all parts since the last call."""
        logs: dict[str, float] = {}
        for part in self.parts:
            own: dict[str, float] | None = self._asked(part, "its logs", part.pop_logs, None)
            logs |= own or {}
        return logs

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, by part."""
        states = {part.name: self._asked(part, "its state", part.state_dict, None) for part in self.parts}
        return {name: state for name, state in states.items() if state is not None}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; a part that is new in the resumed run, or cannot read its state, begins anew."""
        for part in self.parts:
            if part.name not in state:
                continue
            try:
                part.load_state_dict(state[part.name])
            except Exception as error:  # whatever stands in a broken file, the run goes on
                logger.warning(
                    "The state of %s in the checkpoint cannot be read (%s): it begins anew", part.name, error
                )

    def close(self) -> None:
        """Leave no hook behind."""
        self.watch.tap.look_away()
        if self.watch.gate is not None:
            self.watch.gate.close()
            self.watch.gate = None
        with contextlib.ExitStack() as closing:  # all of them, also if one fails
            for part in self.parts:
                closing.callback(self._asked, part, "its end", part.close, None)


def together(
    measuring: Sequence[Measuring], failed: Callable[[int, Exception], None] | None = None
) -> list[Reading | None]:
    """The readings of all, in their order; what they need from the other processes is added up in common collectives.

    Args:
        failed: is called with the place of one that has raised, inside an ``except``; it may raise the error. Then there is no
            reading of it.
    """
    readings: list[Reading | None] = [None] * len(measuring)
    answers: dict[int, Sequence[Tensor] | None] = dict.fromkeys(range(len(measuring)))
    while answers:
        asked: dict[int, Sequence[Tensor]] = {}
        for place, answer in answers.items():
            try:
                asked[place] = next(measuring[place]) if answer is None else measuring[place].send(answer)
            except StopIteration as stop:
                readings[place] = stop.value
            except Exception as error:
                if failed is None:
                    raise
                failed(place, error)
        sums = iter(sums_over_ranks([tensor for tensors in asked.values() for tensor in tensors]))
        answers = {place: [next(sums) for _ in tensors] for place, tensors in asked.items()}
    return readings
