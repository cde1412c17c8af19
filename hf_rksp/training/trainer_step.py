"""What a Trainer does in a step: find blocks, measure beforehand, add the term of KSS to the loss, log the numbers of all parts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_rksp.capture import Stack, find_stacks, untouched
from hf_rksp.capture.agreement import found_anywhere
from hf_rksp.capture.calling import eager
from hf_rksp.config import KSSConfig
from hf_rksp.errors import CaptureError, InputError, first_line
from hf_rksp.ranks import world_size
from hf_rksp.training.aside import reason
from hf_rksp.training.callback import REMEDIES
from hf_rksp.training.checkpoints import HealthyCheckpoints
from hf_rksp.training.extra_pass import extra_passes, loss_beside
from hf_rksp.training.first_batches import same_numbers
from hf_rksp.training.kss.shaper import SpectralShaper
from hf_rksp.training.watch import Watch


class StepAndLoss(HealthyCheckpoints):
    """The step and the loss of a Trainer whose run has parts; without parts they are those of the Trainer underneath."""

    _blocks: str | Sequence[str] | None
    #: Settings of KSS if it acts in the run that goes on.
    _acting: KSSConfig | None
    #: Whether somebody has asked for a monitor, in more words than the defaults.
    _asked: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._microbatches: list[Any] = []
        #: Whether blocks are looked for in the first batch.
        self._waits = False
        #: What ends with the run.
        self._open = ExitStack()
        self._reset_sums()

    def _reset_sums(self) -> None:
        """A run begins: nothing is summed yet."""
        self._term_sum: Tensor | float = 0.0
        self._logged_step = 0
        self._in_step, self._losses_before = False, 0

    @property
    def shaper(self) -> SpectralShaper | None:
        """KSS in the run that goes on."""
        return self.rksp.shaper if self.rksp else None

    def find_blocks(self, batch: Any = None) -> list[Stack]:
        """The residual blocks of the model.

        It is called without a batch when training begins, and with the first batch, before the first step, if blocks were not
        found without.

        Raises:
            CaptureError: none are found. InputError: ``blocks`` names no list of modules.
        """
        if batch is None or self._makes_batches:  # a trainer that makes its batches itself would generate one more
            return find_stacks(self.model, self._blocks)
        try:
            return find_stacks(self.model, self._blocks, functools.partial(self._probe, batch))
        except CaptureError:
            # The model cannot be run with this batch alone: what its modules say.
            with contextlib.suppress(CaptureError):
                return find_stacks(self.model, self._blocks)
            raise

    def _probe(self, batch: Any) -> None:
        """One forward pass without gradients, in evaluation mode, that leaves everything as it was."""
        try:
            with extra_passes(self.model), untouched(self.model), eager(), self.compute_loss_context_manager():
                try:
                    self.measure_pass(batch)
                except Exception:
                    if not (isinstance(batch, Mapping) and "labels" in batch):
                        raise
                    # Some models take labels in training mode alone.
                    self.measure_pass({name: value for name, value in batch.items() if name != "labels"})
        except Exception as error:
            raise CaptureError(
                f"no residual blocks found in {type(self.model).__name__}, and it cannot be run with the first batch alone to look "
                f"for them ({reason(error)}); measure_pass can be overridden"
            ) from error

    def _find_in(self, batch: Any) -> None:
        """Look for blocks in the forward pass of the first batch.

        Raises:
            CaptureError: there are none.
        """
        self._waits = False
        stacks, cause = [], ""
        assert self.rksp is not None
        try:
            stacks = self.find_blocks(batch)
        except CaptureError as error:
            cause = str(error)
        stacks = found_anywhere(self.model, stacks)
        if stacks:
            self.rksp.found(stacks)
            self._wrap_loss()
        elif self._acting or self._asked or self._blocks:
            raise CaptureError(f"{cause.rstrip('.')}. {REMEDIES}")
        else:
            self.rksp.found(None, cause)
            self._wrap_loss()

    def _wrap_loss(self) -> None:
        """See the loss, and add the term of KSS, also if a subclass has a ``compute_loss`` that does not call the one below."""
        inner = self.compute_loss
        wanted = (self.shaper and self.shaper.has_term) or self._the_guard is not None
        if not wanted or getattr(inner, "__func__", None) is StepAndLoss.compute_loss:
            return
        before = self.__dict__.get("compute_loss")

        @functools.wraps(inner)
        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("return_outputs", "num_items_in_batch"), args, strict=False)) | kwargs
            result = inner(model, inputs, *args, **kwargs)
            return self._with_term(model, result, given.get("return_outputs"), given.get("num_items_in_batch"))

        self.compute_loss = compute_loss  # type: ignore[method-assign]  # on this trainer alone
        self._open.callback(self._unwrap_loss, before)

    def _unwrap_loss(self, before: Any) -> None:
        del self.compute_loss
        if before is not None:
            self.compute_loss = before  # type: ignore[method-assign]  # as it was

    @property
    def _makes_batches(self) -> bool:
        return type(self)._prepare_inputs is not Trainer._prepare_inputs

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Keeps the batches of the step, for an exact accumulation."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._microbatches = list(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The step of the Trainer underneath, on one batch; before the first of several, all are measured if that is asked for."""
        batches, self._microbatches = self._microbatches, []
        if self._waits:
            self._find_in(inputs)
        shaper = self.shaper
        if shaper and shaper.active and shaper.config.exact_accumulation and len(batches) > 1:
            self._measure_step(model, shaper, batches)
        if self.rksp and self.rksp.engine:
            # A loss of one's own takes the labels out of the batch, and they tell what is padding in a decoder.
            self.rksp.engine.microbatch(_labels(inputs))
            self._hand_over(self.rksp.engine.watch, inputs)
            self._losses_before = len(self.rksp.engine.watch.losses)
        self._in_step = True
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._in_step = False
        if self.rksp and self.rksp.engine and self.accelerator.sync_gradients:
            self.rksp.engine.gradients_ready()
        return loss

    def _hand_over(self, watch: Watch, inputs: Any) -> None:
        """Let monitors have the batch and the task's loss; a trainer that makes its batches itself would make others."""
        if isinstance(inputs, Mapping) and not self._makes_batches:
            watch.batch, watch.loss = dict(inputs), self._task_loss

    def _task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch beside the run, without the term of KSS."""
        with same_numbers(self), self.compute_loss_context_manager():
            return loss_beside(self, self.model, self._prepare_inputs(dict(batch)))

    def _measure_step(self, model: Any, shaper: SpectralShaper, batches: Sequence[Any]) -> None:
        for part in (model, self.optimizer):
            train = getattr(part, "train", None)  # a schedule-free optimizer keeps other weights for evaluation
            if train is not None:
                train()
        try:
            with shaper.measure_step(), self.compute_loss_context_manager():
                for batch in batches:
                    shaper.watch.withheld = _labels(batch)
                    self._measure_batch(batch)
        except InputError as error:
            if shaper.first_step or world_size() > 1:  # the others wait in a sum
                raise
            shaper.aside("the measuring of a step", error, 0)

    def _measure_batch(self, batch: Any) -> None:
        try:
            self.measure_pass(batch)
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"kss_exact_accumulation=True: the model cannot be called with this batch alone ({first_line(error)}). "
                "Leave it out, or override measure_pass"
            ) from error

    def measure_pass(self, batch: Any) -> None:
        """One forward pass of the model on ``batch`` as the loss makes it, for `kss_exact_accumulation`; nothing comes back.

        Override it if ``compute_loss`` calls the model with something else than the batch.
        """
        inputs = dict(self._prepare_inputs(batch))
        if self.label_smoother is not None or self.compute_loss_func is not None:
            inputs.pop("labels", None)
        # Copies: a model may write into its inputs, and the step has yet to be done with them.
        inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        # The module itself: what DDP and DeepSpeed add to it is for the backward pass.
        self.model(**inputs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the Trainer underneath, plus the term of KSS if the schedule has one (Eq. 15)."""
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        return self._with_term(model, result, return_outputs, num_items_in_batch)

    def _with_term(self, model: Any, result: Any, return_outputs: Any, num_items_in_batch: Any) -> Any:
        """The loss, plus the terms of the forward passes that it is made of; once, whoever asks first."""
        shaper = self.shaper
        if model.training:
            self._say_loss(result[0] if return_outputs else result, num_items_in_batch)
        if not (shaper and shaper.pending and model.training):
            return result
        loss, *outputs = result if return_outputs else (result,)
        term = shaper.term().to(loss.device)
        accumulated = self.current_gradient_accumulation_steps
        self._term_sum += term.detach() / accumulated
        if self._already_scaled(num_items_in_batch):
            term = term / accumulated
        return (loss + term, *outputs) if return_outputs else loss + term

    def _say_loss(self, loss: object, num_items_in_batch: Any) -> None:
        """Let the guard have the loss of a batch, as a mean; of nested calls of ``compute_loss`` the outermost counts."""
        engine = self.rksp.engine if self.rksp else None
        if engine is None or not self._in_step or not (isinstance(loss, Tensor) and loss.numel() == 1):
            return
        times = self.current_gradient_accumulation_steps if self._already_scaled(num_items_in_batch) else 1
        said = engine.watch.losses
        said[self._losses_before :] = [loss.detach().reshape(()) * times]

    def _already_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether Trainer leaves the loss alone that it would else divide by the accumulated batches."""
        # An older Trainer has no such attribute, and does not read one that a subclass sets.
        if hasattr(Trainer, "loss_is_scaled_for_ga") and self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or self.compute_loss_func is not None)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the numbers of all parts to the logs of training; the task's loss is logged apart from the term of KSS."""
        if "loss" in logs and self.rksp:
            if self.shaper:
                since = max(self._logged_step, self.rksp.first_step)
                terms = float(self._term_sum) / max(self.state.global_step - since, 1)
                logs = logs | {"kss/task_loss": logs["loss"] - terms}
                self._term_sum = 0.0
            self._logged_step = self.state.global_step
            logs = logs | self.rksp.pop_logs()
        super().log(logs, start_time)


def _labels(batch: Any) -> dict[str, Any]:
    return {"labels": batch["labels"]} if isinstance(batch, Mapping) and "labels" in batch else {}
