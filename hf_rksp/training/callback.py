"""RKSPCallback: watch the spectrum of a run of any Trainer. It never changes the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_rksp.capture import Stack, find_stacks
from hf_rksp.capture.identity import model_identity
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.errors import CaptureError, OutputError
from hf_rksp.history.schema import FILE_NAME, Kind, described
from hf_rksp.history.write import HistoryWriter
from hf_rksp.machine import versions
from hf_rksp.quantities import SPECTRUM, over_layers
from hf_rksp.ranks import world_size
from hf_rksp.training.aside import reason
from hf_rksp.training.monitors.spectrum import OFF, SpectralMonitor, history_rows, summary

logger = logging.getLogger(__name__)


def several_devices(number: int) -> str:
    """Why nothing is measured where one process has several devices."""
    return f"{number} devices in one process: DataParallel runs copies of the model side by side, and hides the blocks"


#: Name of what a resumed run needs, in the state of Trainer and so in its checkpoints.
STATE = "hf_rksp"


class _Kept(dict[str, Any]):
    """What a checkpoint keeps of one callback; in a checkpoint it is a plain object of JSON."""

    owner = 0


class RKSPCallback(TrainerCallback):
    """Profiles the spectrum on a schedule and keeps it in ``rksp_history.jsonl`` beside the checkpoints.

    Works with every Trainer; a callback cannot change the loss, so KSS needs `RKSPTrainer`. What it measured is put into the
    logs of Trainer under ``rksp/...``: into the history of the state and the output on the screen. Trackers
    (TensorBoard, trackio, W&B) get it from `RKSPTrainer`, because Trainer hands its logs to them before other callbacks.

    It never ends a run: what it cannot read or write it says once, and leaves out (``spectrum/skipped`` counts it).

    Args:
        config: when and on what; see `MonitorConfig`.
        probe: batches for ``config.data="probe"``, as the model is called with them.
        blocks: path(s) of the list(s) of residual blocks; found without help in transformers models.
        kss: settings of KSS, for the record.
    """

    def __init__(
        self,
        config: MonitorConfig | None = None,
        probe: Sequence[Mapping[str, Any]] | None = None,
        blocks: str | Sequence[str] | None = None,
        kss: KSSConfig | None = None,
    ) -> None:
        self.config = config or MonitorConfig()
        self.probe, self.blocks, self.kss = probe, blocks, kss
        self.path: Path | None = None
        #: Set by `RKSPTrainer`, which finds blocks by running the first batch where nothing else tells: it calls `found`.
        self.waits = False
        self._monitor: SpectralMonitor | None = None
        self._history: HistoryWriter | None = None
        self._given: Sequence[Stack] | None = None
        self._begun: tuple[TrainingArguments, TrainerState, nn.Module] | None = None
        self._state = _Kept()
        self._trials = 0
        self._barren: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Find the blocks and open the history."""
        stacks = self._given
        self.close()
        self._restore(state)
        if not isinstance(model, nn.Module):
            kind = f"{type(model).__module__}.{type(model).__name__}"
            self._stand_aside(
                f"the trainer hands callbacks a {kind} as its model, and what can be profiled is a torch.nn.Module. Use "
                "SpectralMonitor on the module itself, or a Trainer of transformers"
            )
            return
        if (devices := getattr(args, "n_gpu", 1)) > 1:
            self._stand_aside(f"{several_devices(devices)}: launch one process a device")
            return
        self._begun = args, state, model
        if stacks is None and self.waits:
            return
        try:
            self.found(find_stacks(model, self.blocks) if stacks is None else stacks)
        except CaptureError as error:
            self._stand_aside(str(error))

    def found(self, stacks: Sequence[Stack] | None, cause: str = "") -> None:
        """Begin with these blocks, or stand aside because of ``cause``."""
        if self._begun is None:
            self._given = stacks
            return
        args, state, model = self._begun
        if stacks is None:
            self._stand_aside(cause)
            return
        self._begun = None
        self._monitor = SpectralMonitor(model, self.config, self.probe, stacks=stacks)
        self._monitor.aside.count = int(self._state["skipped"])
        self._open_history(args, state, model)
        if self._late:  # found in the first step, after it has begun
            self._look(state)

    def _stand_aside(self, cause: str) -> None:
        self._begun = None
        logger.warning("Nothing is profiled in this run: %s. The run goes on; %s", cause.rstrip("."), OFF)

    def _restore(self, state: TrainerState) -> None:
        """What a checkpoint keeps of this run: what waits for the next log, and where the history is."""
        self._late = False
        kept = getattr(state, "stateful_callbacks", None)
        kept = kept if isinstance(kept, dict) else {}
        fresh: dict[str, Any] = {"pending": {}, "skipped": 0, "history": None, "mark": []}
        name, number = STATE, 1
        while isinstance(other := kept.get(name), _Kept) and other.owner != id(self):  # another callback of this run
            name, number = f"{STATE}_{number + 1}", number + 1
        # The same dict from now on, so that every checkpoint has it as it is.
        self._state = kept[name] = _Kept(fresh | (kept.get(name) or {} if state.global_step else {}))
        self._state.owner = id(self)
        if not state.is_world_process_zero:
            self._state["pending"] = {}

    def _open_history(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        name = FILE_NAME
        if getattr(state, "is_hyper_param_search", False):
            self._trials += 1
            name = f"rksp_history_trial_{self._trials}.jsonl"
        self.path = Path(args.output_dir or ".", self._state["history"] or name)
        if not state.is_world_process_zero:
            return
        try:
            self._history = HistoryWriter(
                self.path, state.global_step, self._barren, self._state["mark"], ("kss", "rksp", "spectrum")
            )
        except OutputError as error:
            logger.warning(
                "No history is kept of this run: %s. The run goes on, and profiles are in the logs alone", error
            )
            return
        self.path = self._history.path
        self._state["history"] = self.path.name
        self._history.begin(**self._describe(args, model), quantities=described("spectrum", SPECTRUM))
        self._state["mark"] = list(self._history.mark)

    def _write(self, kind: str, **values: Any) -> None:
        assert self._history is not None
        self._history.write(kind, **values)
        self._state["mark"] = list(self._history.mark)

    def _describe(self, args: TrainingArguments, model: nn.Module) -> dict[str, Any]:
        def given(name: str) -> Any:
            return getattr(args, name, None)  # a Trainer of another library has arguments of its own

        setup = {
            "name": given("run_name"),
            "learning_rate": given("learning_rate"),
            "seed": given("seed"),
            "world_size": world_size(),
            "batch_size": given("per_device_train_batch_size"),
            "gradient_accumulation_steps": given("gradient_accumulation_steps"),
            "max_grad_norm": given("max_grad_norm"),
            "kss": asdict(self.kss) if self.kss else None,
            "monitor": asdict(self.config),
        }
        return {"model": model_identity(model), "setup": setup, "versions": versions()}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the step that comes, or run the probe before it."""
        self._late = self._begun is not None
        if self._monitor:
            self._look(state)

    def _look(self, state: TrainerState) -> None:
        assert self._monitor is not None
        if self.config.due(state.global_step, self._last(state)):
            if self.config.data == "probe":
                self._run_probe(state)
            else:
                self._monitor.watch()

    def _run_probe(self, state: TrainerState) -> None:
        assert self._monitor is not None
        try:
            self._monitor.run_probe()
        except Exception as error:
            # Before the first step it is a setting that does not fit. Later it is not worth a run; but the other processes wait.
            if state.global_step == 0 or world_size() > 1:
                raise
            self._monitor.aside("the probe", error, sum(len(stack.blocks) for stack in self._monitor.stacks))
            return
        self._record(state, state.global_step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on looking while gradients are accumulated."""
        if self._monitor and self._watched(state.global_step, state):
            self._monitor.watch_on()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Solve what was seen in the step that just ended; the probe runs once more at the very end."""
        if self._begun:
            self._stand_aside("the trainer has made a step without the training_step that finds the blocks")
        if self._monitor and self._watched(state.global_step - 1, state):
            self._record(state, state.global_step - 1)
        ended = state.global_step >= state.max_steps
        if (
            self._monitor
            and ended
            and self.config.data == "probe"
            and self.config.due(state.global_step, self._last(state))
        ):
            self._run_probe(state)

    def _last(self, state: TrainerState) -> int:
        """The weights of step k are those before its update: a batch sees k up to max_steps - 1, the probe max_steps too."""
        return state.max_steps if self.config.data == "probe" else state.max_steps - 1

    def _watched(self, step: int, state: TrainerState) -> bool:
        return self.config.data == "batch" and self.config.due(step, self._last(state))

    def _record(self, state: TrainerState, step: int) -> None:
        assert self._monitor is not None
        layers = self._monitor.solve(state.is_world_process_zero)
        skipped = self._monitor.aside.count
        self._state["skipped"] = skipped
        if state.is_world_process_zero:
            self._state["pending"] |= summary(layers, self.config.per_layer) | {"spectrum/skipped": float(skipped)}
        if self._history and layers:
            tokens = max(layer.tokens for layer in layers)
            rows = history_rows(layers)
            self._write(
                Kind.READING,
                monitor="spectrum",
                step=step,
                epoch=state.epoch,
                data=self.config.data,
                tokens=tokens,
                values=over_layers(rows),
                layers=rows,
            )

    def note_unseen(self, entries: Mapping[str, Any]) -> None:
        """Say what of the coming batch the model itself is not given: labels tell the padding of a decoder."""
        if self._monitor:
            self._monitor.unseen = entries

    def pop_logs(self) -> dict[str, float]:
        """The numbers of the last profile, if they were not logged yet."""
        pending, self._state["pending"] = self._state.get("pending", {}), {}
        return pending

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
        if "loss" in logs and self._state.get("pending"):
            pending = self.pop_logs()
            logs.update(pending)
            if state.log_history:
                state.log_history[-1].update(pending)
        if self._history:
            self._history.log(state.global_step, logs)
            self._state["mark"] = list(self._history.mark)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the report."""
        history = self._history
        self.close()
        if history and self.config.report and history.path.is_file():
            from hf_rksp.report import read_history, write_timeline

            page = history.path.with_name(history.path.stem.replace("history", "report") + ".html")
            try:
                write_timeline([read_history(history.path)], page)
            except Exception as error:  # the run is done and its numbers are on disk
                logger.warning("the report was not written: %s", reason(error))

    def close(self) -> None:
        """Leave no hook behind; `RKSPTrainer` calls it after an exception too."""
        if self._monitor:
            self._monitor.close()
        if self._history:
            self._barren = self._history.path if self._history.barren else None
        self._monitor = self._history = self._begun = self._given = None
