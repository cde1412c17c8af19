"""RKSPTrainer: the Trainer you have, with KSS and the monitors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_rksp.capture import Stack, find_stacks, needs_probe, untouched
from hf_rksp.capture.agreement import found_anywhere
from hf_rksp.capture.calling import eager
from hf_rksp.config import GuardConfig, KSSConfig, MonitorConfig
from hf_rksp.errors import CaptureError, InputError, RunStoppedError, first_line
from hf_rksp.ranks import world_size
from hf_rksp.training import before
from hf_rksp.training.arguments import ArgumentMethods
from hf_rksp.training.aside import reason
from hf_rksp.training.before import Mode
from hf_rksp.training.callback import REMEDIES, RKSPCallback, several_devices
from hf_rksp.training.checkpoints import HealthyCheckpoints, read_state
from hf_rksp.training.depth_warmup import require_part
from hf_rksp.training.extra_pass import extra_passes
from hf_rksp.training.first_batches import same_numbers
from hf_rksp.training.guard.guard import DivergenceGuard
from hf_rksp.training.kss import auto
from hf_rksp.training.kss.auto import Decision, Switch, switch_of
from hf_rksp.training.kss.shaper import SpectralShaper
from hf_rksp.training.watch import Watch

#: Least steps from one measuring of KSS to the next if "auto" has left it off.
_WATCHES = 10


class RKSPTrainerMixin(HealthyCheckpoints):
    """Adds KSS and the monitors to a Trainer: ``class MyTrainer(RKSPTrainerMixin, SFTTrainer)``.

    Settings come from the arguments if they are `RKSPTrainingArguments` (or any arguments stacked on
    `RKSPArguments`), else from ``kss`` and ``monitor``. With ``kss_weight=0`` and without the monitor it is the Trainer
    underneath, to the bit.

    Args:
        kss: "auto" (KSS acts where it was measured to help, see `hf_rksp.training.kss.auto`), "on" or "off"; or settings of KSS,
            which then is on. ``None`` for what the arguments say; ``True`` and ``False`` are "on" and "off".
        monitor: settings of the spectral monitor, ``None`` for those of the arguments; ``False`` for no monitor. An `RKSPCallback`
            among the callbacks brings its own.
        probe: batches for the monitor, with ``spectrum_data="probe"``.
        blocks: path(s) of the list(s) of residual blocks.
        risk: "off", "warn" or "stop", ``None`` for that of the arguments; see `hf_rksp.training.before`.
        guard: settings of the guard, or its rungs such as "skip+rollback"; ``None`` for those of the arguments; ``False`` for none.
            A `DivergenceGuard` among the monitors of an `RKSPCallback` takes its place.

    Attributes:
        rksp: the callback that drives the parts; its ``path`` is that of the history. ``None`` if there is no part.

    Raises:
        InputError: several devices in one process (DataParallel), which replicates the model behind the hooks; two monitors.
            When training begins: settings that do not fit the model, or no residual blocks.
    """

    def __init__(
        self,
        *args: Any,
        kss: KSSConfig | str | bool | None = None,
        monitor: MonitorConfig | bool | None = None,
        probe: Sequence[Mapping[str, Any]] | None = None,
        blocks: str | Sequence[str] | None = None,
        risk: Mode | None = None,
        guard: GuardConfig | str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        own = self.args if isinstance(self.args, ArgumentMethods) else None
        self._kss = kss
        if kss is not None and not isinstance(kss, KSSConfig):
            switch_of(kss)
        self._monitors = own.monitors() if own else []
        asked = guard is not None or (own is not None and own.guard is not None)
        self._guard = _guard(guard, own.guard_config() if own else GuardConfig())
        self._spectrum = _choose(monitor, own.spectrum_config() if own else MonitorConfig(), MonitorConfig)
        self._blocks = blocks or (own.residual_blocks if own else None)
        self._report = own.run_report if own else True
        self._probe_batches = probe
        self._risk: Mode = risk or (own.risk if own else "off")
        if self._risk not in before.MODES:
            raise InputError(f"risk={self._risk!r}: pass {', '.join(map(repr, before.MODES))}")
        self._risk_limit = own.risk_limit if own else before.LIMIT
        #: Whether somebody has asked for a monitor, in more words than the defaults.
        self._asked = monitor is not None and monitor is not False
        self._microbatches: list[Any] = []
        self._waits = False
        self._open = ExitStack()
        self._term_sum: Tensor | float = 0.0
        self._in_step, self._losses_before = False, 0
        self._logged_step = 0
        self.rksp: RKSPCallback | None = None
        #: Settings of KSS if it acts in the run that goes on, and what "auto" has decided.
        self._acting: KSSConfig | None = None
        self._decision: Decision | None = None
        acting = self._guard is not None and self._guard.chosen != ("warn",)
        if self.args.n_gpu > 1 and ((self.kss and self.kss_switch == "on") or acting):
            raise InputError(
                f"{several_devices(self.args.n_gpu)}. Launch one process per device: torchrun --nproc_per_node N, or accelerate "
                "launch. Or train without: kss='off' (also among the arguments) switches KSS off, and guard=False the guard"
            )
        self._guard_asked = asked
        # Nobody has asked for a guard if everything else is off: then it is the Trainer underneath.
        if self._guard is not None and (asked or self._spectrum or self._monitors or self.kss):
            self._monitors.append(DivergenceGuard(self._guard))
        self._adopt()
        if self.rksp is None and (self._spectrum or self._monitors or self.kss or self._risk != "off"):
            self._add(RKSPCallback(self._spectrum or False, probe, self._blocks, self._report, self._monitors))

    def _add(self, callback: RKSPCallback) -> None:
        self.rksp = callback
        self.add_callback(callback)

    def _adopt(self) -> None:
        """Let an `RKSPCallback` among the callbacks drive the parts, with its own settings."""
        given = [
            one for one in self.callback_handler.callbacks if isinstance(one, RKSPCallback) and one is not self.rksp
        ]
        if len(given) > 1 or (given and self._asked):
            raise InputError(
                f"callbacks has {len(given)} RKSPCallback{' beside monitor=' if self._asked else ''}: one run has one "
                "monitor. Pass one of them, or its settings as monitor=MonitorConfig(...)"
            )
        if not given:
            return
        if self.rksp:
            self.remove_callback(self.rksp)
        (self.rksp,), self._asked = given, True
        self.rksp.report = self.rksp.report and self._report
        named = [one.name for one in self.rksp.monitors]
        self.rksp.monitors += tuple(one for one in self._monitors if one.name not in named)
        self.rksp.probe = self.rksp.probe or self._probe_batches
        self.rksp.blocks = self._blocks = self.rksp.blocks or self._blocks

    @property
    def kss_switch(self) -> Switch:
        """ "auto", "on" or "off", as it was asked for; read anew, because a search over hyperparameters changes the arguments."""
        if self._kss is None:
            return switch_of(self.args.kss) if isinstance(self.args, ArgumentMethods) else "auto"
        return "on" if isinstance(self._kss, KSSConfig) else switch_of(self._kss)

    @property
    def kss(self) -> KSSConfig | None:
        """Settings of KSS; ``None`` if it is off. With "auto" it may still not act in a run."""
        return self._kss_settings if self.kss_switch != "off" and self._kss_settings.weight else None

    @property
    def _kss_settings(self) -> KSSConfig:
        if isinstance(self._kss, KSSConfig):
            return self._kss
        return self.args.kss_settings() if isinstance(self.args, ArgumentMethods) else KSSConfig()

    @property
    def shaper(self) -> SpectralShaper | None:
        """KSS in the run that goes on."""
        return self.rksp.shaper if self.rksp else None

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            self._open = stack
            self._adopt()
            if self.rksp is None and self.kss:  # switched on since, by a search over hyperparameters
                self._add(RKSPCallback(False, None, self._blocks, self._report, self._monitors))
            state = read_state(kwargs.get("resume_from_checkpoint"))
            require_part(state, self.rksp.monitors if self.rksp else ())
            self._acting = None
            if self.kss:
                self._check_exact(self.kss)
            if self.rksp:
                stack.callback(self._let_go)
                self.rksp.rewind = self._rewind if self._saves_moments else None
                self.rksp.said = self.rksp.decision = None
                resumed = bool(kwargs.get("resume_from_checkpoint"))
                if self._risk != "off" and not resumed:
                    # Now, and not on_train_begin: an engine wraps the model before.
                    self.rksp.said = before.say(self, self._blocks, self.kss is not None and self.kss_switch == "on")
                    before.act(self.rksp.said, self._risk, self._risk_limit, kwargs.get("trial"))
                self._acting = kss = self._decided(state, resumed, kwargs.get("trial") is not None)
                sleeps = self._sleeping_kss(kss)
                watches = None if kss or sleeps else self._watching_kss()
                self.rksp.kss, self.rksp.driven = kss or sleeps or watches, True
                self.rksp.kss_sleeps, self.rksp.kss_watches = sleeps is not None, watches is not None
                self.rksp.resume(state)
                self._waits = bool(self.rksp.kss or self.rksp.config or self.rksp.monitors or self.rksp.said)
            self._term_sum, self._logged_step, self._in_step = 0.0, 0, False
            if self._waits and (self._blocks or not needs_probe(self.model)):
                self._waits = False
                assert self.rksp is not None
                # Hooks before the first call: torch.compile sees those alone.
                self.rksp.attach(self.model, self.find_blocks())
                self._wrap_loss()
            try:
                return super()._inner_training_loop(*args, **kwargs)
            except RunStoppedError as error:
                self._finish_stopped()
                before.prune(kwargs.get("trial"), str(error))
                raise

    def _finish_stopped(self) -> None:
        """The guard has ended the run: what else has an end is ended, such as trackers and progress bars."""
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        if (noise := getattr(self, "neftune_hook_handle", None)) is not None:
            noise.remove()

    def _decided(self, state: Mapping[str, Any] | None, resumed: bool, new_trial: bool) -> KSSConfig | None:
        """Settings of KSS if it acts in this run.

        With "auto" it is decided here, once for a trainer (for each trial of a search), and kept in the checkpoints.
        """
        kss = self.kss
        if kss is None or self.kss_switch == "on":
            return kss
        assert self.rksp is not None
        if resumed:
            self._decision = auto.kept(state)
        elif self._decision is None or new_trial:
            self._decision = auto.decide(self, kss, self.rksp.said, self._blocks)
        self.rksp.decision = self._decision
        if self._decision.on and self.rksp.said is not None:
            self.rksp.said = before.with_kss(self.rksp.said)
        return kss if self._decision.on else None

    def _sleeping_kss(self, kss: KSSConfig | None) -> KSSConfig | None:
        """Settings of KSS if it is off and the guard may switch it on."""
        guard = self._the_guard
        sleeps = kss is None and guard is not None and "kss" in guard.config.chosen
        return self._kss_settings if sleeps else None

    def _watching_kss(self) -> KSSConfig | None:
        """Settings of KSS if "auto" has left it off: it measures now and then what it would act on."""
        kss = self.kss
        if kss is None or self.args.torch_compile:  # which would compile the measured passes too
            return None
        return replace(kss, every=max(_WATCHES, int(self.args.logging_steps)))

    def _let_go(self) -> None:
        self._waits = False
        if self.rksp:
            self.rksp.close()
            self.rksp.kss, self.rksp.driven = None, False
            self.rksp.kss_sleeps = self.rksp.kss_watches = False
            self.rksp.rewind = None
            self.rksp.resume(None)

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

    def _wrap_loss(self) -> None:
        """See the loss, and add the term of KSS, also if a subclass has a ``compute_loss`` that does not call the one below."""
        inner = self.compute_loss
        wanted = (self.shaper and self.shaper.has_term) or self._the_guard is not None
        if not wanted or getattr(inner, "__func__", None) is RKSPTrainerMixin.compute_loss:
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

    def _check_exact(self, kss: KSSConfig) -> None:
        if kss.exact_accumulation and self._makes_batches:
            raise InputError(
                f"kss_exact_accumulation=True: {type(self).__name__} makes its batches anew in every pass (it generates), "
                "so they cannot be measured beforehand; leave it out"
            )

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
            loss = self.compute_loss(self.model, self._prepare_inputs(dict(batch)))
        if not isinstance(loss, Tensor):
            raise InputError(f"compute_loss returns a {type(loss).__name__}, and a tensor with one number is needed")
        return loss

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


class RKSPTrainer(RKSPTrainerMixin, Trainer):
    """Trainer with KSS and the monitors: change the import, keep the rest."""


def _guard(given: GuardConfig | str | bool | None, own: GuardConfig | None) -> GuardConfig | None:
    """Settings of the guard that were given, else those of the arguments; ``None`` for off."""
    if given is None or given is False:
        return own if given is None else None
    config = GuardConfig() if given is True else GuardConfig(given) if isinstance(given, str) else given
    return config if config.chosen else None


def _labels(batch: Any) -> dict[str, Any]:
    return {"labels": batch["labels"]} if isinstance(batch, Mapping) and "labels" in batch else {}


def _choose(given: Any, default: Any, kind: type) -> Any:
    """``None`` for off: what was given, else the default."""
    if given is None or given is False:
        return default if given is None else None
    return kind() if given is True else given
