"""The guard of a run: it judges every step, says at once if one fails, and acts if the owner of the run wishes so."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rksp.config.checks import require_kind
from hf_rksp.config.guard import GuardConfig
from hf_rksp.errors import InputError
from hf_rksp.quantities import Quantity
from hf_rksp.ranks import agreeing, current_ranks, from_main, sum_over_ranks
from hf_rksp.training.gate import StepGate
from hf_rksp.training.guard.allowed import check_actions, check_marks
from hf_rksp.training.guard.buffers import Buffers
from hf_rksp.training.guard.health import Health, stretches_in
from hf_rksp.training.guard.judge import Finding, Judge
from hf_rksp.training.guard.ladder import Ladder
from hf_rksp.training.guard.measured import Measured, Sums
from hf_rksp.training.guard.numbers import broken_numbers
from hf_rksp.training.guard.reader import StepReader
from hf_rksp.training.guard.words import done_in_words, stop_text, with_weights
from hf_rksp.training.host import Later, to_host
from hf_rksp.training.monitors.base import Alarm, Intervention, Measuring, Reading, none
from hf_rksp.training.preconditioner import largest_rate
from hf_rksp.training.watch import Watch

logger = logging.getLogger(__name__)


class DivergenceGuard(Intervention):
    """Judges loss, gradient norm and update norm of every step, and does about a failing one what its actions say.

    By default it warns: the numbers of a step are read one step later, when they are there, and no step waits for the device. With
    any other action every step is judged when its gradients are there and before the weights move, which waits once per step. A
    step that fails is then left out, whatever the action. All processes judge the same sums, so they do the same.

    The loss is that of the task, as the mean over the batches of a step and over the processes, before anything filters it. The
    gradient norm is that before clipping with `RKSPTrainer`, under DeepSpeed, and in a loop of your own that calls
    ``TrainingRun.gradients_ready`` before clipping. In a run with loss scaling (float16) a gradient that is not finite is left to
    the scaler, which skips that step itself.

    Args:
        config: see `GuardConfig`.

    Attributes:
        failing: steps that have failed so far.
        ladder: how often each action was taken.

    Raises:
        InputError: (when the run begins) an action that cannot be taken in this run; the message says why.
    """

    name = "guard"
    quantities = (
        Quantity("failing", "steps that failed, total so far", unit="count"),
        Quantity("left_out", "steps left out by the guard, total so far", unit="count"),
        Quantity("scaled_away", "steps skipped by the loss scaling, total so far", unit="count", note="float16 only."),
        Quantity("rate_factor", "factor of the guard on the learning rate"),
    )

    def __init__(self, config: GuardConfig | None = None) -> None:
        require_kind("config", config, GuardConfig, "GuardConfig(...), such as GuardConfig('skip+rollback')")
        self.config = config or GuardConfig()
        if not self.config.chosen:
            raise InputError("actions='off': leave the guard out instead")
        self.acts = self.config.chosen != ("warn",)
        self._reader = StepReader()
        self._forget()

    def _forget(self) -> None:
        self.judge, self.ladder = Judge(self.config), Ladder(self.config)
        self._reader.forget()
        self.failing = self._left_out = self._scaled_away = self._calm = 0
        self._factor = 1.0
        self._said: dict[str, int] = {}
        self._waiting: tuple[Sums, Later] | None = None
        self._events: list[Alarm] = []
        self._back: tuple[int, Path] | None = None
        self._readings: Sequence[Reading] = ()
        #: Of the run that is gone on from.
        self._stretches: dict[str, int | None] = {}
        #: What a run lacks for the guard was said.
        self._lacks: set[str] = set()

    def attach(self, watch: Watch) -> None:
        """What an earlier run has left is forgotten."""
        super().attach(watch)
        self._forget()

    def begin(self, step: int) -> None:
        """See whether each action can be taken in this run.

        Raises:
            InputError: one cannot.
        """
        writes = self.watch.writes if self.watch.writes is not None else current_ranks().rank == 0
        self.health = Health(self.watch.folder, self.config.healthy, writes)
        self.health.begin(step, self._stretches)
        self._reader.begin(self.watch)
        self._buffers = Buffers(self.watch.model)
        check_marks(self.config, self.watch)
        if self.acts:
            check_actions(self.config, self.watch)
            if self.watch.kss_by_auto:
                self.ladder.drop("kss")
            self._gate.factor = self._factor

    @property
    def _gate(self) -> StepGate:
        assert self.watch.gate is not None
        return self.watch.gate

    def due(self, step: int, last_step: int) -> bool:
        """Every step."""
        return True

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """A step begins."""
        self._reader.step_begin()
        if self.acts:
            self._buffers.begin()
        return none()

    def gradients_ready(self, step: int, readings: Sequence[Reading]) -> None:
        """Take the norm of the gradient. If the guard acts: judge the step, and do what its action says."""
        self._reader.gradients_ready()
        self._readings = tuple(readings)
        if self.acts:
            self._buffers.passed()
            sums = self._sums(step, readings)
            if sums is not None:
                self._act(sums.measured(to_host(sum_over_ranks(sums.values))[0]))
        self._reader.weights_move()

    def _sums(self, step: int, readings: Sequence[Reading]) -> Sums | None:
        alarms = [one for r in readings if r.monitor != self.name for one in r.alarms if one.what == "alarm"]
        return self._reader.sums(step, len(alarms))

    def _findings(self, measured: Measured) -> list[Finding]:
        """What is wrong with a step; it is counted, and checkpoints get their marks."""
        if measured.loss is None:
            self._lack(
                "the loss, because the model does not return it. Use RKSPTrainer, or TrainingRun.gradients_ready(loss=loss)"
            )
        norm, gate = measured.norm, self.watch.gate
        if norm is not None and not math.isfinite(norm) and gate is not None and gate.loss_scale is not None:
            norm = None  # the loss scaling skips the step itself, and tries a smaller scale
        found = self.judge.judge(measured.loss, norm, measured.update)
        if self.config.alarms and measured.alarms:
            found.append(Finding("alarm of a monitor", f"Monitors raised {measured.alarms} alarms."))
        self.failing += bool(found)
        return found

    def _act(self, measured: Measured) -> None:
        """Do about a step what the ladder says; every process has the same numbers and does the same."""
        step, found = measured.step, self._findings(measured)
        if not found:
            self.health.judged(step, [])
            self._give_back(step)
            return
        self._calm = 0
        healthy = self._last_healthy(step)
        action = self.ladder.take(step, self._possible(healthy, all(one.waits for one in found)))
        self._events += self._alarms(measured, found)
        if action is None:  # what is left would be to stop, and the run may only have moved to another level
            return
        self._gate.leave_out()
        self._buffers.restore()
        self._left_out += 1
        texts = [with_weights(one.text, one.rule, measured.broken) for one in found]
        used, out = self.ladder.used, f"Step {step} is left out"
        if action == "skip":
            self._did(step, "left out", f"{out} ({used['skip']} of {self.config.skips}). {texts[0]}")
        elif action == "cut":
            self._set_factor(self._factor * self.config.cut)
            self._did(
                step, "rate cut", f"{out}, and the learning rate is cut to {self._factor:.3g} of its value. {texts[0]}"
            )
        elif action == "kss":
            for part in self.watch.dormant:
                part.dormant = False
            self._did(step, "KSS on", f"{out}, and KSS is switched on. {texts[0]}")
        elif action == "rollback":
            assert healthy is not None
            self._back = healthy
            where = (
                f"Weights and moments go back to {healthy[1].name}. The batches since then are not seen again, and the "
            )
            text = f"{out}. {texts[0]} {where}learning rate goes on."
            self._did(step, "rolled back", text, to=healthy[0])
        else:
            rate = largest_rate(self.watch.optimizer)
            self.watch.stopped = stop_text(
                step, texts, done_in_words(used), healthy, rate, self.watch.folder, self.watch.says_losses
            )
            self.health.stopped(step)

    def _possible(self, healthy: tuple[int, Path] | None, waits: bool) -> frozenset[str]:
        """The actions that can help now. If the weights themselves are broken, only going back does.

        Args:
            healthy: the last healthy checkpoint.
            waits: whether the run may only have moved to another level: then it is not stopped yet.
        """
        going_back = {"rollback"} if healthy is not None else set()
        flags = to_host(sum_over_ranks(broken_numbers(self._reader.weights, self._buffers.before()).sum()))[0]
        if float(flags):
            return frozenset(going_back | {"stop"})
        asleep = {"kss"} if any(part.dormant for part in self.watch.dormant) else set()
        return frozenset({"skip", "cut"} | asleep | going_back | (set() if waits else {"stop"}))

    def _last_healthy(self, step: int) -> tuple[int, Path] | None:
        last: tuple[int, Path] | None = None
        with agreeing(current_ranks()):
            if current_ranks().rank == 0:
                last = self.health.last(step, len(self.watch.locked))
        found: tuple[int, Path] | None = from_main(last)
        return found

    def _set_factor(self, factor: float) -> None:
        self._factor = self._gate.factor = factor

    def _give_back(self, step: int) -> None:
        """After so many calm steps the learning rate rises by one cut."""
        if self._factor < 1 and self._calm >= self.config.cooldown:
            self._calm = 0
            self._set_factor(min(1.0, self._factor / self.config.cut))
            self._did(step, "rate back", f"The learning rate is at {self._factor:.3g} of its value again.")
        self._calm += 1

    def _did(self, step: int, what: str, text: str, **more: Any) -> None:
        self._events.append(Alarm(what, text, what=what, more=more))

    def _alarms(self, measured: Measured, found: Sequence[Finding]) -> list[Alarm]:
        """An alarm for each finding whose rule was not said within the cool-down: a run that has failed fails in every step."""
        alarms = []
        for finding in found:
            last, self._said[finding.rule] = self._said.get(finding.rule), measured.step
            if last is None or measured.step - last > self.config.cooldown:
                layer = measured.broken[0] if measured.broken and finding.rule.startswith("gradient norm") else ""
                alarms.append(Alarm(finding.rule, with_weights(finding.text, finding.rule, measured.broken), layer))
        return alarms

    def step_made(self) -> None:
        """The step was made or left out. Go back if that was decided."""
        gate = self.watch.gate
        if not self._reader.told and not (gate is not None and gate.says_ready):
            if self.acts:
                raise InputError(
                    f"actions={self.config.actions!r}: the guard was not asked before the weights moved; call "
                    "run.gradients_ready() after the backward pass, before clipping and optimizer.step()"
                )
            self._lack("the gradients: call run.gradients_ready() after the backward pass, before clipping")
        self._reader.weights_moved()
        if gate is not None:
            gate.step_over()
            if gate.left_out:
                self._reader.update = None
            self._scaled_away += gate.skipped_itself
        if self._back is not None:
            (to, folder), self._back = self._back, None
            assert self.watch.rewind is not None
            self.watch.rewind(folder)
            self.health.rolled_back(to)
            self.judge.reset()

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """Say what was done. If the guard only warns: send the numbers of the step to main memory, and judge those before."""
        return self._told(step, main_process) if self.acts else self._sent(step, main_process)

    def run_end(self, step: int, main_process: bool) -> Measuring:
        """Judge the last step."""
        return self._judged(main_process)
        yield []

    def _told(self, step: int, main_process: bool) -> Measuring:
        events, self._events = self._events, []
        if not (main_process and events):
            return None
        for one in events:
            if one.what != "alarm":  # below a warning, logging shows nothing by default
                logger.warning("%s", one.text)
        return Reading(self.name, step, {}, alarms=events)
        yield []

    def _sent(self, step: int, main_process: bool) -> Measuring:
        sums = self._sums(step, self._readings)
        total = None
        if sums is not None:
            (total,) = yield [sums.values]
        reading = self._judged(main_process)
        if sums is not None and total is not None:
            self._waiting = sums, Later(total)
        return reading

    def _judged(self, main_process: bool) -> Reading | None:
        """Judge the step whose numbers have arrived."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        sums, total = waiting
        measured = sums.measured(total.get())
        found = self._findings(measured)
        self.health.judged(sums.step, [one.text for one in found])
        alarms = self._alarms(measured, found)
        if not (main_process and alarms):
            return None
        for one in alarms:
            logger.warning("Step %d: %s", sums.step, one.text)
        return Reading(self.name, sums.step, {}, alarms=alarms)

    def _lack(self, what: str) -> None:
        """Say once what the guard does not see."""
        if what not in self._lacks and current_ranks().rank == 0:
            logger.warning("The guard does not see %s", what)
        self._lacks.add(what)

    def saved(self, step: int, folder: Path) -> None:
        """Mark the checkpoint: ill if a weight is not finite, else open until enough steps have come after it."""
        buffers = self._buffers.now()
        flags = to_host(sum_over_ranks(broken_numbers(self._reader.weights, buffers)))[0].tolist()
        broken = [name for name, flag in zip([*self._reader.weights, *buffers], flags, strict=True) if flag]
        self.health.saved(folder, step, broken, len(self.watch.locked))

    def pop_logs(self) -> dict[str, float]:
        """What has happened so far; nothing in a healthy run."""
        counts = {"failing": self.failing, "left_out": self._left_out, "scaled_away": self._scaled_away}
        logs = {f"guard/{name}": float(number) for name, number in counts.items() if number}
        return logs | ({"guard/rate_factor": self._factor} if self._factor < 1 else {})

    def state_dict(self) -> dict[str, Any]:
        """The past of the run, what was done and said, and the numbers of the last step, which are judged later."""
        waiting, update = self._waiting, self._reader.update
        return {
            "waiting": None
            if waiting is None
            else [waiting[0].step, waiting[1].get().tolist(), list(waiting[0].names)],
            "update": None if update is None or not self.acts else to_host(update)[0].tolist(),
            "judge": self.judge.state_dict(),
            "ladder": self.ladder.state_dict(),
            "failing": self.failing,
            "left_out": self._left_out,
            "scaled_away": self._scaled_away,
            "calm": self._calm,
            "factor": self._factor,
            "said": dict(self._said),
            "health": self.health.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, or from nothing of it. The past of another ``window`` is not gone on from."""
        try:
            self._load(state)
        except Exception:
            self._forget()
            raise

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.judge.load_state_dict(state["judge"])
        except ValueError as error:
            logger.warning(
                "The guard begins its past anew; that in the checkpoint is of another guard_window: %s", error
            )
            self.judge.reset()
        self._stretches = stretches_in(state["health"])
        self.ladder.load_state_dict(state["ladder"])
        self.failing, self._left_out = int(state["failing"]), int(state["left_out"])
        self._scaled_away, self._calm = int(state["scaled_away"]), int(state["calm"])
        self._factor = float(state["factor"])
        if not 0 < self._factor <= 1:
            raise ValueError(f"factor {self._factor} on the learning rate")
        self._said = {str(rule): int(step) for rule, step in state["said"].items()}
        if self.acts:
            self._reader.update = (
                None if state["update"] is None else torch.tensor(float(state["update"]), dtype=torch.float64)
            )
        elif state["waiting"] is not None:
            step, numbers, names = state["waiting"]
            values = torch.tensor(
                [math.nan if number is None else float(number) for number in numbers], dtype=torch.float64
            )
            self._waiting = Sums(int(step), values, tuple(map(str, names))), Later(values)

    def close(self) -> None:
        """Look no more."""
        self._reader.close()
