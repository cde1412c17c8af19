"""RKSPCallback: drives the engine through the events of any Trainer. Alone it only watches, and never changes the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rksp.capture import Stack, find_stacks
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.config.checks import switched
from hf_rksp.errors import CaptureError, RunStoppedError
from hf_rksp.history.schema import FILE_NAME
from hf_rksp.json_data import plain
from hf_rksp.training.alerts import sender
from hf_rksp.training.aside import reason
from hf_rksp.training.before import Said
from hf_rksp.training.engine import Engine
from hf_rksp.training.guard.guard import DivergenceGuard
from hf_rksp.training.kss.auto import Decision
from hf_rksp.training.kss.schedule import Watching
from hf_rksp.training.kss.shaper import SpectralShaper
from hf_rksp.training.monitors.base import Monitor, require_parts
from hf_rksp.training.monitors.spectrum import OFF, SpectralMonitor, require_used
from hf_rksp.training.of_trainer import described, lives, see_rate, several_devices
from hf_rksp.training.page import draw
from hf_rksp.training.recorder import RECORDER, Recorder
from hf_rksp.training.watch import Watch

logger = logging.getLogger(__name__)
#: Name of what a resumed run needs, in the state of Trainer and so in its checkpoints.
STATE = "hf_rksp"
#: Entry of that state: the learning rate of the arguments when the run began.
_ASKED_RATE = "learning_rate"

#: What can be done if a model has no residual blocks.
REMEDIES = (
    "Name their list with blocks='path.to.list' (residual_blocks). Or train without: kss='off' (also among the arguments) switches "
    "KSS off, and monitor=False (spectrum=False) the monitor"
)


class _Kept(dict[str, Any]):
    """What a checkpoint keeps of one callback; in a checkpoint it is a plain object of JSON."""

    owner = 0


class RKSPCallback(TrainerCallback):
    """Profiles the spectrum on a schedule and keeps it in ``rksp_history.jsonl`` in the folder of the run.

    Works with every Trainer; a callback cannot change the loss, so KSS needs `RKSPTrainer`. What it measured is put into the
    logs of Trainer under ``spectrum/...``: into the history of the state and the output on the screen. Trackers
    (TensorBoard, trackio, W&B) get it from `RKSPTrainer`, because Trainer hands its logs to them before other callbacks.

    It never ends a run: what it cannot read or write a warning names once, and it is left out (``spectrum/skipped`` counts it).

    Args:
        config: when to profile and on what; see `MonitorConfig`. ``False`` for no spectral monitor.
        probe: batches for ``config.data="probe"``, as the model is called with them.
        blocks: path(s) of the list(s) of residual blocks; found automatically in transformers models.
        report: draw the run as a page when it ends.
        monitors: others that look too, such as `AlignmentMonitor`.

    Attributes:
        path: of the history of the run.
        kss: settings of KSS, which `RKSPTrainer` sets.
        kss_sleeps: whether KSS does nothing until the guard switches it on.
        kss_watches: whether KSS measures and never acts.
        rewind: loads weights and moments of a checkpoint into the run; `RKSPTrainer` sets it.
        engine: of the run that goes on, once its blocks are known.
    """

    def __init__(
        self,
        config: MonitorConfig | bool | None = None,
        probe: Sequence[Mapping[str, Any]] | None = None,
        blocks: str | Sequence[str] | None = None,
        report: bool = True,
        monitors: Sequence[Monitor] = (),
    ) -> None:
        require_parts(monitors)
        self.monitors = tuple(monitors)
        self.config: MonitorConfig | None = switched("config", config, MonitorConfig(), MonitorConfig)
        require_used(probe, self.config)
        self.probe, self.blocks, self.report = probe, blocks, report
        self.kss: KSSConfig | None = None
        self.kss_sleeps = self.kss_watches = False
        self.path: Path | None = None
        self.engine: Engine | None = None
        #: Optimizer steps that were behind the run when it began.
        self.first_step = 0
        #: Set by `RKSPTrainer`. It finds the blocks, by running the first batch if nothing else tells, and calls `found`; its logs
        #: have what is pending already; and it keeps the state in a file of its own.
        self.driven = False
        #: Set by `RKSPTrainer`: what was said of the run before its first step, the first event of the history.
        self.said: Said | None = None
        #: Set by `RKSPTrainer`: whether KSS acts, if that was decided by "auto".
        self.decision: Decision | None = None
        self.rewind: Callable[[Path], None] | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._recorder = Recorder()
        self._begun: tuple[TrainingArguments, TrainerState, nn.Module] | None = None
        self._state = _Kept()
        self._optimizer: object = None
        self._trials = 0
        self._late = False

    @property
    def shaper(self) -> SpectralShaper | None:
        """KSS in the run that goes on."""
        parts = self.engine.parts if self.engine else ()
        return next((part for part in parts if isinstance(part, SpectralShaper)), None)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, by part."""
        self._keep()
        return self._state

    def attach(self, model: nn.Module, stacks: Sequence[Stack]) -> None:
        """Put the parts on the model, whose residual blocks are ``stacks``, before its first call."""
        self.engine = Engine(Watch(model, self.blocks, stacks), self._made(), self._recorder)

    def _made(self) -> list[Monitor]:
        parts: list[Monitor] = []
        if self.config is not None:
            parts.append(SpectralMonitor(self.config, self.probe))
        parts += self.monitors
        if self.kss is not None:
            watching = Watching(self.kss) if self.kss_watches else None
            parts.append(SpectralShaper(config=self.kss, schedule=watching, dormant=self.kss_sleeps))
        return parts

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Find the blocks and open the history."""
        if not self.driven:
            self.close()
        self._restore(state)
        self.first_step = state.global_step
        self._optimizer = kwargs.get("optimizer")
        if not isinstance(model, nn.Module):
            kind = f"{type(model).__module__}.{type(model).__name__}"
            self._stand_aside(
                f"the trainer hands callbacks a {kind} as its model, and what can be profiled is a torch.nn.Module. Use "
                "SpectralMonitor on the module itself, or a Trainer of transformers"
            )
            return
        if (devices := getattr(args, "n_gpu", 1)) > 1:
            self._stand_aside(f"{several_devices(devices)}: launch one process per device")
            return
        self._begun = args, state, model
        if self.engine is not None:
            self._begin()
        elif not self.driven:
            stacks, cause = None, ""
            try:
                stacks = find_stacks(model, self.blocks)
            except CaptureError as error:
                cause = str(error)
            self.found(stacks, cause)

    def found(self, stacks: Sequence[Stack] | None, cause: str = "") -> None:
        """Begin with these blocks, or stand aside because of ``cause``. A guard needs no blocks, so it begins all the same."""
        guards = [part for part in self.monitors if isinstance(part, DivergenceGuard)]
        if stacks is None and not (guards and self._begun):
            self._stand_aside(cause)
            return
        assert self._begun is not None
        if stacks is None:
            text = "Nothing is profiled in this run: %s. The guard watches it all the same; %s"
            logger.warning(text, cause.rstrip("."), OFF)
            self.engine = Engine(Watch(self._begun[2], stacks=()), guards, self._recorder)
        else:
            self.attach(self._begun[2], stacks)
        self._begin()

    def _begin(self) -> None:
        """The parts are attached and the run has begun."""
        assert self._begun is not None and self.engine is not None
        (args, state, model), self._begun = self._begun, None
        watch = self.engine.watch
        watch.optimizer, watch.folder, watch.rewind = self._optimizer, Path(args.output_dir or "."), self.rewind
        watch.acts = watch.says_losses = self.driven
        watch.kss_by_auto = self.decision is not None and self.decision.on
        watch.writes, watch.lives = getattr(args, "should_save", None), lives(args, state)
        self.engine.watch.seed = int(getattr(args, "seed", 0) or 0)
        if hasattr(args, "get_warmup_steps"):
            schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
            self.engine.watch.warmup_steps = int(args.get_warmup_steps(state.max_steps))
            self.engine.watch.decays = not schedule.startswith("constant")
        if self.kss_watches and (shaper := self.shaper) is not None:  # a share of the steps is a number only now
            shaper.config = replace(shaper.config, every=max(shaper.config.every, int(state.logging_steps or 0)))
        self.engine.begin(state.global_step, state.max_steps, self._state)
        if state.is_world_process_zero:
            see_rate(getattr(args, "learning_rate", None), self._state.get(_ASKED_RATE), self._optimizer)
        self._state.setdefault(_ASKED_RATE, getattr(args, "learning_rate", None))
        self._open_history(args, state, model)
        if self._late:  # found in the first step, after it has begun
            self.engine.step_begin(state.global_step)

    def _stand_aside(self, cause: str) -> None:
        self._begun = None
        if self.engine:
            self.engine.close()
            self.engine = None
        logger.warning("Nothing is profiled in this run: %s. The run goes on; %s", cause.rstrip("."), OFF)

    def _restore(self, state: TrainerState) -> None:
        """What a checkpoint keeps of this run, by part: what waits for the next log, and where the history is."""
        self._late = False
        kept = getattr(state, "stateful_callbacks", None)
        kept = kept if isinstance(kept, dict) else {}
        name, number = STATE, 1
        while isinstance(other := kept.get(name), _Kept) and other.owner != id(self):  # another callback of this run
            name, number = f"{STATE}_{number + 1}", number + 1
        # The same dict from now on, so that every checkpoint has it as it is.
        found = kept.get(name) if self._resumed is None else self._resumed
        self._state = kept[name] = _Kept(found or {} if state.global_step else {})
        self._state.owner = id(self)

    def _keep_in_state(self) -> None:
        """Let the next checkpoint have the state. `RKSPTrainer` asks for it when it saves: KSS waits for the device then."""
        if not self.driven:
            self._keep()

    def _keep(self) -> None:
        """Bring the state for a checkpoint up to date."""
        if self.engine is not None:
            self._state.update(plain(self.engine.state_dict()))
            if recorder := self._recorder.state_dict():
                self._state[RECORDER] = recorder

    def _open_history(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        name = FILE_NAME
        if getattr(state, "is_hyper_param_search", False):
            self._trials += 1
            name = f"rksp_history_trial_{self._trials}.jsonl"
        assert self.engine is not None
        self._recorder.open(
            Path(args.output_dir or "."),
            state.global_step,
            described(args, model, self._optimizer, None if self.kss_watches else self.kss, self.config, self.monitors),
            self.engine.parts,
            self._state.get(RECORDER) or {},
            state.is_world_process_zero,
            name,
        )
        if self.said is not None:
            self._recorder.event(state.global_step, "risk", "forecast", self.said.text, **self.said.values)
        if self.decision is not None:
            self._recorder.event(state.global_step, "kss", "decision", self.decision.text, **self.decision.values)
        self.path, self._recorder.send = self._recorder.path, sender(getattr(args, "report_to", ()))
        self._keep_in_state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Monitors that are due look at the step that comes, or run their probe before it."""
        self._late = self._begun is not None
        if self.engine:
            self._recorder.epoch = state.epoch
            self.engine.step_begin(state.global_step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on looking while gradients are accumulated."""
        if self.engine:
            self.engine.look()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The gradients are there. `RKSPTrainer` has said so before they were clipped."""
        if self.engine and not self.driven:
            self.engine.gradients_ready()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Solve what was seen in the step that just ended."""
        if self._begun:
            cause = "the trainer has made a step without the training_step that finds the residual blocks"
            if self.kss and not self.kss_watches:
                raise CaptureError(f"{cause}. {REMEDIES}")
            self._stand_aside(cause)
        if self.engine:
            self._recorder.epoch = state.epoch
            try:
                self.engine.step_end(ended=state.global_step >= state.max_steps)
            except RunStoppedError as error:
                self._stopped(args, state, error)
                raise
            self._keep_in_state()

    def _stopped(self, args: TrainingArguments, state: TrainerState, error: RunStoppedError) -> None:
        """The guard ends the run: say why, and leave the page and the log of the run behind."""
        if state.is_world_process_zero:
            logger.error("%s", error)
            try:
                state.save_to_json(str(Path(args.output_dir or ".", TRAINER_STATE_NAME)))
            except OSError as failed:  # a full disk, perhaps: the run ends all the same, and says why
                logger.warning("%s was not written: %s", TRAINER_STATE_NAME, reason(failed))
        self._end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint was written; `RKSPTrainer` has said so before older ones were deleted."""
        if self.engine and not self.driven:
            self.engine.saved(Path(args.output_dir or ".", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))

    def pop_logs(self) -> dict[str, float]:
        """The numbers of all parts that were not logged yet."""
        logs = self.engine.pop_logs() if self.engine else {}
        logs |= {f"{part}/alarms": float(number) for part, number in self._recorder.alarms.items()}
        self._keep_in_state()
        return logs

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what is pending to the logs, and keep them in the history."""
        if logs is None or not state.is_world_process_zero:
            return
        if "loss" in logs and not self.driven and (pending := self.pop_logs()):
            logs.update(pending)
            if state.log_history:
                state.log_history[-1].update(pending)
        self._recorder.log(state.global_step, logs)
        self._keep_in_state()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the report."""
        if self.engine:
            self.engine.end()
        self._end()

    def _end(self) -> None:
        history = self._recorder.close()
        self.close()
        if history and self.report:
            draw(history)

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """The next run goes on from this state of a checkpoint, if it goes on."""
        self._resumed = state

    def close(self) -> None:
        """Leave no hook behind; `RKSPTrainer` calls it after an exception too."""
        if self.engine:
            self.engine.close()
        self._recorder.close()
        self.engine = self._begun = None
