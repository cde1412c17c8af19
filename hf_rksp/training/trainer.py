"""RKSPTrainer: the Trainer you have, with KSS and the monitor."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rksp.capture import Stack, find_stacks, needs_probe, untouched
from hf_rksp.capture.agreement import found_anywhere
from hf_rksp.capture.calling import eager
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.errors import CaptureError, InputError, first_line
from hf_rksp.files import put_files
from hf_rksp.ranks import world_size
from hf_rksp.training.arguments import RKSPArguments
from hf_rksp.training.aside import reason
from hf_rksp.training.callback import RKSPCallback, several_devices
from hf_rksp.training.extra_pass import extra_passes
from hf_rksp.training.kss.shaper import SpectralShaper

logger = logging.getLogger(__name__)
#: State of KSS in a checkpoint.
STATE_NAME = "kss_state.json"
#: What can be done where a model has no residual blocks.
_REMEDIES = (
    "Name their list with blocks='path.to.list' (rksp_blocks). Or train without: kss=False (kss=False among the arguments, or "
    "kss_weight=0) switches KSS off, and monitor=False (rksp_monitor=False) the monitor"
)


class RKSPTrainerMixin:
    """Adds KSS and the monitor to a Trainer: ``class MyTrainer(RKSPTrainerMixin, SFTTrainer)``.

    Settings come from the arguments where they are `RKSPTrainingArguments` (or any arguments stacked on
    `RKSPArguments`), else from ``kss`` and ``monitor``. With ``kss_weight=0`` and without the monitor it is the Trainer
    underneath, to the bit.

    Args:
        kss: settings of KSS, ``None`` for those of the arguments; ``False`` for no KSS.
        monitor: settings of the monitor, ``None`` for those of the arguments; ``False`` for no monitor. An `RKSPCallback` among
            the callbacks is the monitor.
        probe: batches for the monitor, with ``rksp_data="probe"``.
        blocks: path(s) of the list(s) of residual blocks.

    Raises:
        InputError: several devices in one process (DataParallel), which replicates the model behind the hooks; two monitors.
            When training begins: settings that do not fit the model, or no residual blocks.
    """

    def __init__(
        self,
        *args: Any,
        kss: KSSConfig | bool | None = None,
        monitor: MonitorConfig | bool | None = None,
        probe: Sequence[Mapping[str, Any]] | None = None,
        blocks: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given: TrainingArguments = self.args  # type: ignore[attr-defined]
        own = given if isinstance(given, RKSPArguments) else None
        self._kss = kss
        settings = _choose(monitor, own.monitor_config() if own else MonitorConfig(), MonitorConfig)
        self._blocks = blocks or (own.rksp_blocks if own else None)
        self._shaper: SpectralShaper | None = None
        self._microbatches: list[Any] = []
        if given.n_gpu > 1 and self.kss:
            raise InputError(
                f"{several_devices(given.n_gpu)}. Launch one process a device: torchrun --nproc_per_node N, or accelerate launch. "
                "Or train without: kss=False (kss=False among the arguments, or kss_weight=0) switches KSS off"
            )
        self._waits = False
        #: Whether somebody has asked for a monitor, in more words than the defaults.
        self._asked = monitor is not None and monitor is not False
        self._probe_batches = probe
        self.rksp_monitor: RKSPCallback | None = None
        if not self._adopt_monitor() and settings:
            self.rksp_monitor = RKSPCallback(settings, probe, self._blocks)
            self.add_callback(self.rksp_monitor)  # type: ignore[attr-defined]

    def _adopt_monitor(self) -> bool:
        """Make an `RKSPCallback` among the callbacks the monitor; whether there is one."""
        handler = self.callback_handler  # type: ignore[attr-defined]
        given = [one for one in handler.callbacks if isinstance(one, RKSPCallback) and one is not self.rksp_monitor]
        if len(given) > 1 or (given and self._asked):
            raise InputError(
                f"callbacks has {len(given)} RKSPCallback{' beside monitor=' if self._asked else ''}: one run has one "
                "monitor. Pass one of them, or its settings as monitor=MonitorConfig(...)"
            )
        if not given:
            return False
        if self.rksp_monitor:
            self.remove_callback(self.rksp_monitor)  # type: ignore[attr-defined]
        (self.rksp_monitor,), self._asked = given, True
        self.rksp_monitor.probe = self.rksp_monitor.probe or self._probe_batches
        self.rksp_monitor.blocks = self.rksp_monitor.blocks or self._blocks
        self._blocks = self._blocks or self.rksp_monitor.blocks
        return True

    @property
    def kss(self) -> KSSConfig | None:
        """Settings of KSS; read from the arguments anew, because a search over hyperparameters changes those."""
        given = self.args  # type: ignore[attr-defined]
        default = given.kss_config() if isinstance(given, RKSPArguments) else KSSConfig()
        chosen = _choose(self._kss, default, KSSConfig)
        return chosen if chosen and chosen.weight else None

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            self._open, kss = stack, self.kss
            self._adopt_monitor()
            if self.rksp_monitor:
                self.rksp_monitor.kss, self.rksp_monitor.waits = kss, True
                stack.callback(self.rksp_monitor.close)
                stack.callback(setattr, self.rksp_monitor, "waits", False)
            if kss:
                self._check_exact(kss)
                counter = _StepCounter(self)
                self.add_callback(counter)  # type: ignore[attr-defined]
                stack.callback(self.remove_callback, counter)  # type: ignore[attr-defined]
            self._checkpoint = kwargs.get("resume_from_checkpoint")
            self._waits = bool(kss or self.rksp_monitor)
            stack.callback(setattr, self, "_waits", False)
            if self._waits and (self._blocks or not needs_probe(self.model)):  # type: ignore[attr-defined]
                self._found(self.find_blocks())
            return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]

    def find_blocks(self, batch: Any = None) -> list[Stack]:
        """The residual blocks of the model.

        It is called without a batch when training begins, and with the first batch, before the first step, where blocks were not
        found without.

        Raises:
            CaptureError: none are found. InputError: ``blocks`` names no list of modules.
        """
        model = self.model  # type: ignore[attr-defined]
        if batch is None or self._makes_batches:  # a trainer that makes its batches itself would generate one more
            return find_stacks(model, self._blocks)
        try:
            return find_stacks(model, self._blocks, functools.partial(self._probe, batch))
        except CaptureError:
            # The model cannot be run with this batch alone: what its modules say.
            with contextlib.suppress(CaptureError):
                return find_stacks(model, self._blocks)
            raise

    def _probe(self, batch: Any) -> None:
        """One forward pass without gradients, in evaluation mode, that leaves everything as it was."""
        try:
            with extra_passes(self.model), untouched(self.model), eager(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
                try:
                    self.survey_pass(batch)
                except Exception:
                    if not (isinstance(batch, Mapping) and "labels" in batch):
                        raise
                    # Some models take labels in training mode alone.
                    self.survey_pass({name: value for name, value in batch.items() if name != "labels"})
        except Exception as error:
            name = type(self.model).__name__  # type: ignore[attr-defined]
            raise CaptureError(
                f"no residual blocks found in {name}, and it cannot be run with the first batch alone to look for them "
                f"({reason(error)}); survey_pass can be overridden"
            ) from error

    def _found(self, stacks: list[Stack]) -> None:
        """Watch these blocks from now on."""
        self._waits, kss = False, self.kss
        if kss:
            # Hooks before the first call: torch.compile sees those alone. Gone afterwards, also after an exception.
            self._shaper = SpectralShaper(self.model, kss, self._blocks, stacks)  # type: ignore[attr-defined]
            self._resume_shaper(self._checkpoint)
            self._shaper.steps = self.state.global_step  # type: ignore[attr-defined]
            self._open.enter_context(self._shaper)
            self._open.callback(setattr, self, "_shaper", None)
            self._wrap_loss()
        if self.rksp_monitor:
            self.rksp_monitor.found(stacks)

    def _find_in(self, batch: Any) -> None:
        """Look for blocks in the forward pass of the first batch.

        Raises:
            CaptureError: there are none.
        """
        self._waits = False
        stacks, cause = [], ""
        try:
            stacks = self.find_blocks(batch)
        except CaptureError as error:
            cause = str(error)
        stacks = found_anywhere(self.model, stacks)  # type: ignore[attr-defined]
        if stacks:
            self._found(stacks)
        elif self.kss or self._asked or self._blocks:
            raise CaptureError(f"{cause.rstrip('.')}. {_REMEDIES}")
        elif self.rksp_monitor:
            self.rksp_monitor.found(None, cause)

    def _wrap_loss(self) -> None:
        """Add the term of KSS also where a subclass has a ``compute_loss`` that does not call the one below."""
        assert self._shaper is not None
        if not self._shaper.has_term or getattr(self.compute_loss, "__func__", None) is RKSPTrainerMixin.compute_loss:
            return
        inner, before = self.compute_loss, self.__dict__.get("compute_loss")

        @functools.wraps(inner)
        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)) | kwargs
            result = inner(model, inputs, *args, **kwargs)
            return self._with_term(model, result, given.get("return_outputs"), given.get("num_items_in_batch"))

        self.compute_loss = compute_loss  # type: ignore[method-assign]
        self._open.callback(self._unwrap_loss, before)

    def _unwrap_loss(self, before: Any) -> None:
        del self.compute_loss
        if before is not None:
            self.compute_loss = before  # type: ignore[method-assign]

    @property
    def _makes_batches(self) -> bool:
        return type(self)._prepare_inputs is not Trainer._prepare_inputs  # type: ignore[attr-defined]

    def _check_exact(self, kss: KSSConfig) -> None:
        if kss.exact_accumulation and self._makes_batches:
            raise InputError(
                f"kss_exact_accumulation=True: {type(self).__name__} makes its batches anew in every pass (it generates), "
                "so they cannot be measured beforehand; leave it out"
            )

    def _resume_shaper(self, checkpoint: str | None) -> None:
        self._terms, self._logged_step = 0.0, self.state.global_step  # type: ignore[attr-defined]
        file = Path(checkpoint, STATE_NAME) if checkpoint else None
        if file and file.exists() and self._shaper:
            try:
                self._shaper.load_state_dict(json.loads(file.read_text()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s cannot be read (%s): the means and counts of KSS begin anew", file, reason(error))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Keeps the batches of the step, for an exact accumulation."""
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._microbatches = list(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The step of the Trainer underneath, on one batch; before the first of several, all are measured if that is asked for."""
        batches, self._microbatches = self._microbatches, []
        if self._waits:
            self._find_in(inputs)
        shaper = self._shaper
        if shaper and shaper.active and shaper.config.exact_accumulation and len(batches) > 1:
            self._survey(model, shaper, batches)
        # A loss of one's own takes the labels out of the batch, and they tell what is padding in a decoder.
        unseen = _labels(inputs)
        if shaper:
            shaper.unseen = unseen
        if self.rksp_monitor:
            self.rksp_monitor.note_unseen(unseen)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _survey(self, model: Any, shaper: SpectralShaper, batches: Sequence[Any]) -> None:
        for part in (model, self.optimizer):  # type: ignore[attr-defined]
            if hasattr(part, "train"):  # a schedule-free optimizer keeps other weights for evaluation
                part.train()
        try:
            with shaper.survey() as survey, self.compute_loss_context_manager():  # type: ignore[attr-defined]
                for batch in batches:
                    survey.unseen = _labels(batch)
                    self._survey_batch(batch)
        except InputError as error:
            if shaper.first_step or world_size() > 1:  # the others wait in a sum
                raise
            shaper.aside("the survey of a step", error, 0)

    def _survey_batch(self, batch: Any) -> None:
        try:
            self.survey_pass(batch)
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"kss_exact_accumulation=True: the model cannot be called with this batch alone ({first_line(error)}). "
                "Leave it out, or override survey_pass"
            ) from error

    def survey_pass(self, batch: Any) -> None:
        """One forward pass of the model on ``batch`` as the loss makes it, for `kss_exact_accumulation`; nothing comes back.

        Override it where ``compute_loss`` calls the model with something else than the batch.
        """
        inputs = dict(self._prepare_inputs(batch))  # type: ignore[attr-defined]
        if self.label_smoother is not None or self.compute_loss_func is not None:  # type: ignore[attr-defined]
            inputs.pop("labels", None)
        # Copies: a model may write into its inputs, and the step has yet to be done with them.
        inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        # The module itself: what DDP and DeepSpeed add to it is for the backward pass.
        self.model(**inputs)  # type: ignore[attr-defined]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the Trainer underneath, plus the term of KSS where the schedule has one (Eq. 15)."""
        result = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        return self._with_term(model, result, return_outputs, num_items_in_batch)

    def _with_term(self, model: Any, result: Any, return_outputs: Any, num_items_in_batch: Any) -> Any:
        """The loss, plus the terms of the forward passes that it is made of; once, whoever asks first."""
        if not (self._shaper and self._shaper.pending and model.training):
            return result
        loss, *outputs = result if return_outputs else (result,)
        term = self._shaper.term().to(loss.device)
        accumulated = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        self._terms += float(term.detach()) / accumulated
        if self._already_scaled(num_items_in_batch):
            term = term / accumulated
        return (loss + term, *outputs) if return_outputs else loss + term

    def _already_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether Trainer leaves the loss alone that it would else divide by the accumulated batches."""
        if self.loss_is_scaled_for_ga is not None:  # type: ignore[attr-defined]
            return self.loss_is_scaled_for_ga  # type: ignore[attr-defined,no-any-return]
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
        return bool(by_model or self.compute_loss_func is not None)  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ``kss/...`` and ``rksp/...`` to the logs of training; the task's loss stands apart from the term of KSS."""
        if "loss" in logs and self._shaper:
            step = self.state.global_step  # type: ignore[attr-defined]
            terms = self._terms / max(step - self._logged_step, 1)
            logs = logs | {"kss/task_loss": logs["loss"] - terms} | self._shaper.pop_logs()
            self._terms, self._logged_step = 0.0, step
        if "loss" in logs and self.rksp_monitor:
            logs = logs | self.rksp_monitor.pop_logs()
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self._shaper and self.args.should_save:  # type: ignore[attr-defined]
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")  # type: ignore[attr-defined]
            try:
                put_files({STATE_NAME: json.dumps(self._shaper.state_dict()).encode()}, folder)
            except OSError as error:
                logger.warning(
                    "%s is not in %s (%s): a resumed run begins its means anew", STATE_NAME, folder, reason(error)
                )


class RKSPTrainer(RKSPTrainerMixin, Trainer):
    """Trainer with KSS and the monitor: change the import, keep the rest."""


class _StepCounter(TrainerCallback):
    """Tells KSS which step it is: every draw is seeded by it, so that processes and resumed runs agree."""

    def __init__(self, trainer: RKSPTrainerMixin) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._logged_step = state.global_step
        if self.trainer._shaper:
            self.trainer._shaper.steps = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer._waits:
            raise CaptureError(
                f"{type(self.trainer).__name__} has made a step without the training_step that finds the residual "
                f"blocks. {_REMEDIES}"
            )
        if self.trainer._shaper:
            self.trainer._shaper.step()


def _labels(batch: Any) -> dict[str, Any]:
    return {"labels": batch["labels"]} if isinstance(batch, Mapping) and "labels" in batch else {}


def _choose(given: Any, default: Any, kind: type) -> Any:
    """``None`` for off: what was given, else the default."""
    if given is None or given is False:
        return default if given is None else None
    return kind() if given is True else given
