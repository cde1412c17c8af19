"""RKSPCallback: watch the spectrum of a run of any Trainer. It never changes the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.errors import RkspError
from hf_rksp.machine import versions
from hf_rksp.profile.model import model_identity
from hf_rksp.report.history import FILE_NAME, SCHEMA_VERSION
from hf_rksp.training.distributed import world_size
from hf_rksp.training.history import HistoryWriter
from hf_rksp.training.monitor import SpectralMonitor, history_rows, summary

logger = logging.getLogger(__name__)


class RKSPCallback(TrainerCallback):
    """Profiles the spectrum on a schedule and keeps it in ``rksp_history.jsonl`` beside the checkpoints.

    Works with every Trainer; a callback cannot change the loss, so KSS needs `RKSPTrainer`. What it measured is put into the
    logs of Trainer under ``rksp/...``: into the history of the state and the output on the screen. Trackers
    (TensorBoard, trackio, W&B) get it from `RKSPTrainer`, because Trainer hands its logs to them before other callbacks.

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
        self._monitor: SpectralMonitor | None = None
        self._history: HistoryWriter | None = None
        self._pending: dict[str, float] = {}
        self._trials = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Find the blocks and open the history."""
        self.close()
        self._pending = {}
        self._monitor = SpectralMonitor(model, self.config, self.probe, self.blocks)
        name = FILE_NAME
        if state.is_hyper_param_search:
            self._trials += 1
            name = f"rksp_history_trial_{self._trials}.jsonl"
        self.path = Path(args.output_dir or ".", name)
        if state.is_world_process_zero:
            self._history = HistoryWriter(self.path, state.global_step)
            if self._history.empty:
                self._history.write("run", schema_version=SCHEMA_VERSION, **self._describe(args, model))

    def _describe(self, args: TrainingArguments, model: nn.Module) -> dict[str, Any]:
        setup = {
            "name": args.run_name,
            "learning_rate": args.learning_rate,
            "seed": args.seed,
            "world_size": world_size(),
            "batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "max_grad_norm": args.max_grad_norm,
            "kss": asdict(self.kss) if self.kss else None,
            "monitor": asdict(self.config),
        }
        return {"model": model_identity(model), "setup": setup, "versions": versions()}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the step that comes, or run the probe before it."""
        if self._monitor and self.config.due(state.global_step, self._last(state)):
            if self.config.data == "probe":
                self._monitor.run_probe()
                self._record(state, state.global_step)
            else:
                self._monitor.watch()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on looking while gradients are accumulated."""
        if self._monitor and self._watched(state.global_step, state):
            self._monitor.watch_on()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Solve what was seen in the step that just ended; the probe runs once more at the very end."""
        if self._monitor and self._watched(state.global_step - 1, state):
            self._record(state, state.global_step - 1)
        ended = state.global_step >= state.max_steps
        if (
            self._monitor
            and ended
            and self.config.data == "probe"
            and self.config.due(state.global_step, self._last(state))
        ):
            self._monitor.run_probe()
            self._record(state, state.global_step)

    def _last(self, state: TrainerState) -> int:
        """The weights of step k are those before its update: a batch sees k up to max_steps - 1, the probe max_steps too."""
        return state.max_steps if self.config.data == "probe" else state.max_steps - 1

    def _watched(self, step: int, state: TrainerState) -> bool:
        return self.config.data == "batch" and self.config.due(step, self._last(state))

    def _record(self, state: TrainerState, step: int) -> None:
        assert self._monitor is not None
        layers = self._monitor.solve(state.is_world_process_zero)
        self._pending |= summary(layers, self.config.per_layer)
        if self._history and layers:
            tokens = max(layer.tokens for layer in layers)
            self._history.write(
                "profile",
                step=step,
                epoch=state.epoch,
                data=self.config.data,
                tokens=tokens,
                layers=history_rows(layers),
            )

    def note_unseen(self, entries: Mapping[str, Any]) -> None:
        """Say what of the coming batch the model itself is not given: labels tell the padding of a decoder."""
        if self._monitor:
            self._monitor.unseen = entries

    def pop_logs(self) -> dict[str, float]:
        """The numbers of the last profile, if they were not logged yet."""
        pending, self._pending = self._pending, {}
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
        if "loss" in logs and self._pending:
            pending = self.pop_logs()
            logs.update(pending)
            state.log_history[-1].update(pending)
        if self._history:
            self._history.write_log(state.global_step, logs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the report."""
        history = self._history
        self.close()
        if history and self.config.report:
            from hf_rksp.report import read_history, write_timeline

            page = history.path.with_name(history.path.stem.replace("history", "report") + ".html")
            try:
                write_timeline([read_history(history.path)], page)
            except RkspError as error:  # the run is done and its numbers are on disk
                logger.warning("the report was not written: %s", error)

    def close(self) -> None:
        """Leave no hook behind; `RKSPTrainer` calls it after an exception too."""
        if self._monitor:
            self._monitor.close()
        self._monitor = self._history = None
