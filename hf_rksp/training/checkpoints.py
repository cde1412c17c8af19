"""Checkpoints of a Trainer with a guard: marked, rotated by health, gone back to; and the state of all parts beside them."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rksp.doctor.health import rotate, to_go_on_from, whole_and_finite
from hf_rksp.doctor.mark import drop_mark
from hf_rksp.errors import InputError
from hf_rksp.files import put_files
from hf_rksp.ranks import agreeing, current_ranks, from_main, world_size
from hf_rksp.training.aside import reason
from hf_rksp.training.callback import RKSPCallback
from hf_rksp.training.gate import put_rates, rates_of
from hf_rksp.training.guard.disk import lacks_room, on_full_disk
from hf_rksp.training.guard.guard import DivergenceGuard
from hf_rksp.training.kss.auto import DECISION

logger = logging.getLogger(__name__)
#: What DeepSpeed's engine counts, which goes on when weights and moments go back.
_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
#: State of all parts in a checkpoint.
STATE_NAME = "rksp_state.json"

# The mixin stands before a Trainer; the type checker has to know which methods that one has.
if TYPE_CHECKING:

    class Host(Trainer):
        """A Trainer whose model is there."""

        model: nn.Module  # never None once the Trainer is made

else:
    Host = object


class HealthyCheckpoints(Host):
    """What a Trainer does with its checkpoints if there is a guard; without one only the state of the parts is kept.

    Attributes:
        rksp: the callback that drives the parts.
    """

    rksp: RKSPCallback | None
    _guard_asked: bool
    _hidden_limit: int | None = None

    @property
    def _the_guard(self) -> DivergenceGuard | None:
        parts = self.rksp.monitors if self.rksp else ()
        return next((part for part in parts if isinstance(part, DivergenceGuard)), None)

    @property
    def _saves_moments(self) -> bool:
        return not self.args.save_only_model and str(self.args.save_strategy) not in ("no", "SaveStrategy.NO")

    def _rewind(self, folder: Path) -> None:
        """Load weights and moments of a checkpoint of this run. Steps, batches and the learning rate go on where they are."""
        assert self.optimizer is not None and self.lr_scheduler is not None
        rates = rates_of(self.optimizer)
        schedule = self.lr_scheduler.state_dict()
        if self.is_deepspeed_enabled:
            engine = self.model_wrapped
            counters = {name: getattr(engine, name) for name in _COUNTERS if hasattr(engine, name)}
            deepspeed_load_checkpoint(engine, str(folder), load_module_strict=not hasattr(self.model, "peft_config"))
            for name, value in counters.items():
                setattr(engine, name, value)
        else:
            self._load_from_checkpoint(str(folder), self.model_wrapped if self.is_fsdp_enabled else None)
        self._load_optimizer_and_scheduler(str(folder))
        self._load_scaler(str(folder))
        self.lr_scheduler.load_state_dict(schedule)
        put_rates(self.optimizer, rates)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train. ``resume_from_checkpoint=True`` goes on from the last checkpoint that is not known to be ill, if there is a guard.

        Raises:
            InputError: every checkpoint is ill or damaged.
            RunStoppedError: the guard has ended the run.
        """
        if resume_from_checkpoint is True and self._the_guard is not None:
            resume_from_checkpoint = self._healthy_checkpoint() or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _healthy_checkpoint(self) -> str | None:
        """The checkpoint to go on from, the same on every process; ``None`` if there is none at all."""
        run, choice = Path(self.args.output_dir or "."), None
        with agreeing(current_ranks()):
            if self.args.process_index == 0:
                choice = to_go_on_from(run)
                if choice.folder is None and not self._guard_asked:  # nobody has asked for verdicts
                    choice = replace(choice, folder=whole_and_finite(run))
        choice = from_main(choice)
        if choice.folder is None and choice.left_out:
            raise InputError(
                f"resume_from_checkpoint=True: no checkpoint in {run} is healthy: {'; '.join(choice.left_out)}. Pass the path of "
                "one, or begin anew"
            )
        if choice.left_out and self.args.process_index == 0:
            logger.warning(
                "The run goes on from %s. Marked as ill or damaged: %s", choice.folder, "; ".join(choice.left_out)
            )
        return None if choice.folder is None else str(choice.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before, because Trainer saves its own state with it: then a plain Trainer with the callback can go on from here too.
        state = self.rksp.state if self.rksp and self.rksp.engine else None
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        guard = self._the_guard
        if guard is None or state is None:
            super()._save_checkpoint(model, trial)
            self._keep_state(folder, state)
            return
        assert self.rksp is not None and self.rksp.engine is not None
        if guard.acts and lacks_room(folder.parent):
            self._not_saved(folder)
            return
        if self.args.should_save:  # one of this name will be written over
            with contextlib.suppress(OSError):
                drop_mark(folder)
        # Trainer deletes by age alone, and the last healthy checkpoint has to stay.
        limit = self.args.save_total_limit
        self.args.save_total_limit, self._hidden_limit = None, limit
        # Others would wait for what a failed process gathers, or at the barrier after which the best checkpoint is noted.
        waits = self.is_deepspeed_enabled or self.is_fsdp_enabled or (world_size() > 1 and self.state.best_global_step)
        try:
            with on_full_disk(folder, guard.acts and not waits) as disk:
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self._hidden_limit = limit, None
        if disk.full_anywhere():
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            self._not_saved(folder)
            return
        self._keep_state(folder, state)
        self.rksp.engine.saved(folder)
        if self.args.should_save:
            rotate(folder.parent, limit, self.state.best_model_checkpoint, folder, guard.health.owns)

    def _not_saved(self, folder: Path) -> None:
        """There is no checkpoint, so the callbacks that wait for one are not called this time."""
        assert self.rksp is not None and self.rksp.engine is not None
        self.rksp.engine.not_saved(folder)
        handler = self.callback_handler

        def on_save(args: Any, state: Any, control: Any) -> Any:
            del handler.on_save
            control.should_save = False
            return control

        handler.on_save = on_save  # type: ignore[assignment, method-assign]  # once, on this one alone

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer underneath, which keeps the arguments beside the model."""
        now, self.args.save_total_limit = self.args.save_total_limit, self._hidden_limit or self.args.save_total_limit
        try:
            super().save_model(*args, **kwargs)
        finally:
            self.args.save_total_limit = now

    def _keep_state(self, folder: Path, state: Mapping[str, Any] | None) -> None:
        if state is not None and self.rksp is not None and self.rksp.decision is not None:
            state = {**state, DECISION: self.rksp.decision.on}
        if state is not None and self.args.should_save:
            try:
                put_files({STATE_NAME: json.dumps(state).encode()}, folder)
            except OSError as error:
                logger.warning(
                    "%s is not in %s (%s): a resumed run begins its means anew", STATE_NAME, folder, reason(error)
                )


def read_state(checkpoint: object) -> dict[str, Any] | None:
    """State of all parts in a checkpoint; ``None`` if there is none that can be read."""
    file = Path(checkpoint, STATE_NAME) if isinstance(checkpoint, (str, Path)) else None
    if file is None or not file.exists():
        return None
    try:
        state = json.loads(file.read_text())
        if not isinstance(state, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): means and counts begin anew", file, reason(error))
        return None
    return state
