"""RKSPTrainer: the Trainer you have, with KSS and the monitors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from transformers import Trainer

from hf_rksp.capture import needs_probe
from hf_rksp.config import GuardConfig, KSSConfig, MonitorConfig
from hf_rksp.config.checks import switched
from hf_rksp.errors import InputError, RunStoppedError
from hf_rksp.training import before
from hf_rksp.training.arguments import ArgumentMethods
from hf_rksp.training.before import Mode
from hf_rksp.training.callback import RKSPCallback
from hf_rksp.training.checkpoints import read_state
from hf_rksp.training.depth_warmup import require_part
from hf_rksp.training.guard.guard import DivergenceGuard
from hf_rksp.training.kss import auto
from hf_rksp.training.kss.auto import Decision, Switch, switch_of
from hf_rksp.training.of_trainer import several_devices
from hf_rksp.training.trainer_step import StepAndLoss

#: Least steps from one measuring of KSS to the next if "auto" has left it off.
_WATCHES = 10


class RKSPTrainerMixin(StepAndLoss):
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
        guard: settings of the guard, or its actions ("skip+rollback"); ``None`` for those of the arguments; ``False`` for none.
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
        self._spectrum = switched("monitor", monitor, own.spectrum_config() if own else MonitorConfig(), MonitorConfig)
        self._blocks = blocks or (own.residual_blocks if own else None)
        self._report = own.run_report if own else True
        self._probe_batches = probe
        self._risk: Mode = risk or (own.risk if own else "off")
        if self._risk not in before.MODES:
            raise InputError(f"risk={self._risk!r}: pass {', '.join(map(repr, before.MODES))}")
        self._risk_limit = own.risk_limit if own else before.LIMIT
        #: Whether somebody has asked for a monitor, in more words than the defaults.
        self._asked = monitor is not None and monitor is not False
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
            self._reset_sums()
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
        return replace(kss, every=_WATCHES)

    def _let_go(self) -> None:
        self._waits = False
        if self.rksp:
            self.rksp.close()
            self.rksp.kss, self.rksp.driven = None, False
            self.rksp.kss_sleeps = self.rksp.kss_watches = False
            self.rksp.rewind = None
            self.rksp.resume(None)

    def _check_exact(self, kss: KSSConfig) -> None:
        if kss.exact_accumulation and self._makes_batches:
            raise InputError(
                f"kss_exact_accumulation=True: {type(self).__name__} makes its batches anew in every pass (it generates), "
                "so they cannot be measured beforehand; leave it out"
            )


class RKSPTrainer(RKSPTrainerMixin, Trainer):
    """Trainer with KSS and the monitors: change the import, keep the rest."""


def _guard(given: GuardConfig | str | bool | None, own: GuardConfig | None) -> GuardConfig | None:
    """Settings of the guard that were given, else those of the arguments; ``None`` for off."""
    given = GuardConfig(given) if isinstance(given, str) else given
    remedy = "actions such as 'skip+rollback', GuardConfig(...), or False for no guard"
    config: GuardConfig | None = switched("guard", given, own, GuardConfig, remedy)
    return config if config is not None and config.chosen else None
