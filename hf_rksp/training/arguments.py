"""Settings of a training run: for HfArgumentParser, for YAML and JSON files, for TrainingArguments of any kind.

The fields are made from the configs: ``kss_rank`` is the field ``rank`` of a `KSSConfig`, with its help. A setting that the
schedules have in different ways is ``None`` until it is set, and gets the default of its schedule.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from transformers import TrainingArguments

from hf_rksp.config import (
    KSS_SCHEDULES,
    AlignmentConfig,
    AttentionConfig,
    CurvatureConfig,
    DepthWarmupConfig,
    GuardConfig,
    KSSConfig,
    MonitorConfig,
)
from hf_rksp.errors import InputError
from hf_rksp.training.before import LIMIT, MODES, Mode
from hf_rksp.training.depth_warmup import DepthWarmup
from hf_rksp.training.kss.auto import switch_of
from hf_rksp.training.monitors.alignment import AlignmentMonitor
from hf_rksp.training.monitors.attention import AttentionMonitor
from hf_rksp.training.monitors.base import Monitor
from hf_rksp.training.monitors.curvature import CurvatureMonitor


def _option(default: object, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _fields_of(prefix: str, kinds: dict[str, type[Any]]) -> dict[str, tuple[str, Any, Any]]:
    """Name -> (name, type, field) of the arguments for the settings of one config, or of one config per schedule."""
    found: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    for schedule, kind in kinds.items():
        for one in dataclasses.fields(kind):
            found.setdefault(one.name, {})[schedule] = one
    made = {}
    for name, by_schedule in found.items():
        if name == "schedule":
            continue
        (first, *_), hints = by_schedule.values(), get_type_hints(kinds[next(iter(by_schedule))])
        texts = {schedule: one.metadata["help"] for schedule, one in by_schedule.items()}
        defaults = {schedule: one.default for schedule, one in by_schedule.items()}
        same = (
            len(by_schedule) == len(kinds) and len(set(map(repr, defaults.values()))) == len(set(texts.values())) == 1
        )
        if same:
            made[name] = (prefix + name, hints[name], _option(first.default, _sentence(texts[next(iter(texts))])))
            continue
        words = [f"{schedule}: {text}, default {defaults[schedule]}" for schedule, text in texts.items()]
        if hints[name] is bool:
            words.append("Pass true or false")
        made[name] = (prefix + name, hints[name] | None, _option(None, f"{'. '.join(words)}."))
    return made


_KSS = _fields_of("kss_", dict(KSS_SCHEDULES))
_SPECTRUM = _fields_of("spectrum_", {"": MonitorConfig})
_ALIGNMENT = _fields_of("alignment_", {"": AlignmentConfig})
_ATTENTION = _fields_of("attention_", {"": AttentionConfig})
_CURVATURE = _fields_of("curvature_", {"": CurvatureConfig})
_DEPTH = _fields_of("depth_warmup_", {"": DepthWarmupConfig})
_GUARD = {name: one for name, one in _fields_of("guard_", {"": GuardConfig}).items() if name != "actions"}


# The methods stand before TrainingArguments; the type checker has to know what those have.
if TYPE_CHECKING:

    class _Host(TrainingArguments):
        def __post_init__(self) -> None: ...

else:
    _Host = object


class ArgumentMethods(_Host):
    """What `RKSPArguments` does besides holding values; the annotations tell the type checker of fields that it cannot see."""

    kss: str
    kss_schedule: Literal["balanced", "paper"]
    spectrum: bool
    run_report: bool
    depth_warmup: Literal["off", "paper", "lr", "curvature"]
    guard: str | None
    risk: Mode
    risk_limit: float
    residual_blocks: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kss = switch_of(self.kss)
        for name in ("guard", "risk", "depth_warmup"):
            if getattr(self, name) in (False, "False", "false"):  # "off" in YAML is false
                setattr(self, name, "off")
        for name in ("spectrum", "run_report"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"{name}={getattr(self, name)!r}: pass true or false, without quotes. Settings have arguments of "
                    "their own (spectrum_every, ...) or go to RKSPTrainer(monitor=...)"
                )
        if self.risk not in MODES:
            raise InputError(f"risk={self.risk!r}: pass 'off', 'warn' or 'stop'")
        if not 0 <= self.risk_limit <= 1:
            raise InputError(f"risk_limit={self.risk_limit!r}: pass a probability, from 0 to 1")
        # Checked here, before a model is loaded or a process group is made; also what is switched off.
        self._kss()
        self._made("spectrum_", MonitorConfig, _SPECTRUM)
        self.monitors()
        self.guard_config()

    def kss_config(self) -> KSSConfig | None:
        """Settings of KSS, or ``None`` if it is off; with "auto" it may still not act in a run.

        Raises:
            InputError: a value that KSS cannot have; the message names the argument.
        """
        config = self._kss()
        return config if switch_of(self.kss) != "off" and config.weight else None

    def spectrum_config(self) -> MonitorConfig | None:
        """Settings of the spectral monitor, or ``None`` if it is off.

        Raises:
            InputError: a value that the monitor cannot have; the message names the argument.
        """
        config: MonitorConfig = self._made("spectrum_", MonitorConfig, _SPECTRUM)
        return config if self.spectrum else None

    def guard_config(self) -> GuardConfig | None:
        """Settings of the guard, or ``None`` if it is off. Without a word on it (``guard`` is ``None``) the guard warns.

        Raises:
            InputError: a value that the guard cannot have; the message names the argument.
        """
        config: GuardConfig = self._made(
            "guard_", GuardConfig, _GUARD, actions="warn" if self.guard is None else self.guard
        )
        return config if config.chosen else None

    def kss_settings(self) -> KSSConfig:
        """Settings of KSS, whether or not it is on: the guard may switch it on later."""
        return self._kss()

    def monitors(self) -> list[Monitor]:
        """The monitors besides that of the spectrum that are switched on, and the depth warm-up.

        Raises:
            InputError: a value that a monitor cannot have; the message names the argument.
        """
        alignment: AlignmentConfig = self._made("alignment_", AlignmentConfig, _ALIGNMENT)
        attention: AttentionConfig = self._made("attention_", AttentionConfig, _ATTENTION)
        curvature: CurvatureConfig = self._made("curvature_", CurvatureConfig, _CURVATURE)
        alignment_monitor = [AlignmentMonitor(alignment)] if alignment.every else []
        attention_monitor = [AttentionMonitor(attention)] if attention.every else []
        curvature_monitor = [CurvatureMonitor(curvature)] if curvature.every else []
        depth = self._depth()
        if depth.schedule == "curvature" and not curvature.every:
            raise InputError("depth_warmup='curvature': it reads the curvature; set curvature_every")
        warmup = [DepthWarmup(depth)] if depth.schedule != "off" else []
        return [*alignment_monitor, *attention_monitor, *curvature_monitor, *warmup]

    def _depth(self) -> DepthWarmupConfig:
        if self.depth_warmup not in ("off", "paper", "lr", "curvature"):
            raise InputError(f"depth_warmup={self.depth_warmup!r}: pass 'off', 'paper', 'lr' or 'curvature'")
        made: DepthWarmupConfig = self._made("depth_warmup_", DepthWarmupConfig, _DEPTH, schedule=self.depth_warmup)
        return made

    def _kss(self) -> KSSConfig:
        made: KSSConfig = self._made("kss_", KSSConfig, _KSS, schedule=self.kss_schedule)
        return made

    def _made(self, prefix: str, kind: Any, names: dict[str, Any], **more: Any) -> Any:
        given = {name: getattr(self, prefix + name) for name in names}
        try:
            return kind(**more, **{name: value for name, value in given.items() if value is not None})
        except InputError as error:
            # The settings name what is theirs, and the reader has typed the names of the arguments.
            names_of_all = "|".join([*names, *more])
            text = re.sub(rf"\b({names_of_all})=", rf"{prefix}\1=", str(error))
            raise InputError(text.replace("guard_actions=", "guard=")) from None


RKSPArguments = make_dataclass(
    "RKSPArguments",
    [
        (
            "kss",
            str,  # true and false are taken too: from YAML, and from code
            _option(
                "auto",
                "The spectral regulariser (KSS): 'on', 'off', or 'auto' (on for networks that gain and runs that may be lost).",
            ),
        ),
        (
            "kss_schedule",
            Literal["balanced", "paper"],
            _option(
                "balanced",
                "'balanced': at every step, bounded by the task's gradient. 'paper': RKSP Eq. 14-15 every 10 steps, as published.",
            ),
        ),
        *_KSS.values(),
        ("spectrum", bool, _option(True, "Profile the spectrum while training and keep it in rksp_history.jsonl.")),
        *_SPECTRUM.values(),
        *_ALIGNMENT.values(),
        *_ATTENTION.values(),
        *_CURVATURE.values(),
        (
            "depth_warmup",
            Literal["off", "paper", "lr", "curvature"],
            _option(
                "off",
                "Keep the deepest blocks locked at first. 'paper': unlock them at fixed steps. 'lr': as the learning rate decays. "
                "'curvature': when the curvature is low.",
            ),
        ),
        *_DEPTH.values(),
        (
            "guard",
            str | None,
            _option(
                None,
                "What is done about a step that fails: 'off', or warn, skip, cut, kss, rollback, stop joined by +, such as "
                "skip+rollback. Default: warn, if KSS or a monitor is on.",
            ),
        ),
        *_GUARD.values(),
        (
            "run_report",
            bool,
            _option(True, "Draw the run as a page, rksp_report.html, when it ends."),
        ),
        (
            "risk",
            Mode,
            _option(
                "off",
                "Before the first step: probability that this run is lost. 'warn': warn above risk_limit. 'stop': do not begin.",
            ),
        ),
        ("risk_limit", float, _option(LIMIT, "Probability of being lost above which risk warns or stops.")),
        (
            "residual_blocks",
            str | None,
            _option(
                None,
                "Module path of the list of residual blocks, if they are not found automatically (models of your own).",
            ),
        ),
    ],
    bases=(ArgumentMethods,),
    namespace={
        "__doc__": "The fields that hf_rksp adds. Put it before any TrainingArguments: ``class Args(RKSPArguments, SFTConfig)``.",
        "__module__": __name__,
    },
)


@dataclass
class RKSPTrainingArguments(RKSPArguments, TrainingArguments):  # type: ignore[misc, valid-type]  # its fields are made above
    """TrainingArguments with the fields of KSS (``kss_...``), of risk, and of the monitors.

    The monitors are ``spectrum_...``, ``alignment_...``, ``attention_...`` and ``curvature_...``. ``depth_warmup_...``
    are those of architecture warm-up, ``guard_...`` those of the guard.
    """
