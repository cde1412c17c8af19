"""Settings of a training run: for HfArgumentParser, for YAML and JSON files, for TrainingArguments of any kind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.errors import InputError


def _option(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass
class RKSPArguments:
    """The fields that hf_rksp adds. Put it before any TrainingArguments: ``class Args(RKSPArguments, SFTConfig)``."""

    kss: bool = _option(True, "Apply the spectral regulariser (KSS) while training.")
    kss_schedule: str = _option(
        "balanced",
        "'balanced': at every step, bounded against the task's gradient. 'paper': RKSP Eq. 14-15 every 10 steps, as published.",
    )
    kss_weight: float | None = _option(
        None,
        "balanced: share of the task's gradient, default 1. paper: alpha of Eq. 15, default 0.15. 0 switches KSS off.",
    )
    kss_every: int | None = _option(None, "Optimizer steps from one use of KSS to the next: balanced 1, paper 10.")
    kss_layer_fraction: float | None = _option(None, "Share of the layers drawn at each use: balanced 1, paper 0.5.")
    kss_first_block_weight: float | None = _option(
        None,
        "Of the first block, which makes a large stream of small embeddings, a share of kss_weight: balanced 0.3, paper 1.",
    )
    kss_rank: int | None = _option(
        None, "Directions that the states are projected on, at most the width of the model; default 32, or that width."
    )
    kss_upper_threshold: float = _option(1.05, "Moduli above it are penalised.")
    kss_near_unit_target: float = _option(0.4, "paper: share of near-unit modes that is aimed at.")
    kss_near_unit_weight: float = _option(1.0, "paper: weight of that aim.")
    kss_ridge: float | None = _option(
        None, "Ridge of the whitening. balanced: relative to the mean variance, 0.01. paper: absolute, 1e-5."
    )
    kss_exact_accumulation: bool = _option(
        False,
        "Measure all accumulated batches of a step before the first is trained on, so that 8 batches of 1 are 1 batch of 8. "
        "Costs half a step more where batches are accumulated, and 24 d^2 bytes a layer.",
    )
    kss_seed: int = _option(0, "Seed of the directions and of the draw of layers.")
    rksp_monitor: bool = _option(True, "Profile the spectrum while training and keep it in rksp_history.jsonl.")
    rksp_every: int = _option(500, "Optimizer steps from one profile to the next; 0 for the start and the end alone.")
    rksp_at_start: bool = _option(True, "Profile the first step.")
    rksp_at_end: bool = _option(True, "Profile the last step.")
    rksp_data: str = _option(
        "batch",
        "'batch': profile the training batch, nothing is run twice. 'probe': profile the fixed batches given as probe=.",
    )
    rksp_rank: int = _option(64, "Directions that the profiled states are projected on.")
    rksp_per_layer: bool = _option(False, "Log near-unit mass and spectral radius of every layer.")
    rksp_report: bool = _option(True, "Draw the run as a page, rksp_report.html, at the end.")
    rksp_blocks: str | None = _option(
        None, "Path of the list of residual blocks, for a model of your own; found without help in transformers models."
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        # Checked here, before a model is loaded or a process group is made; also what is switched off.
        self._config(KSSConfig, "kss_")
        self._config(MonitorConfig, "rksp_")

    def kss_config(self) -> KSSConfig | None:
        """Settings of KSS, or ``None`` if it is off.

        Raises:
            InputError: a value that KSS cannot have; the message names the argument.
        """
        config = self._config(KSSConfig, "kss_")
        return config if self.kss and config.weight else None

    def monitor_config(self) -> MonitorConfig | None:
        """Settings of the monitor, or ``None`` if it is off.

        Raises:
            InputError: a value that the monitor cannot have; the message names the argument.
        """
        return self._config(MonitorConfig, "rksp_") if self.rksp_monitor else None

    def _config(self, kind: type[Any], prefix: str) -> Any:
        names = [name for name in kind.__dataclass_fields__ if prefix + name in RKSPArguments.__dataclass_fields__]
        try:
            return kind(**{name: getattr(self, prefix + name) for name in names})
        except InputError as error:
            # The settings name what is theirs, and the reader has typed the names of the arguments.
            raise InputError(re.sub(rf"\b({'|'.join(names)})=", rf"{prefix}\1=", str(error))) from None


@dataclass
class RKSPTrainingArguments(RKSPArguments, TrainingArguments):
    """TrainingArguments with the fields of KSS (``kss_...``) and of the monitor (``rksp_...``)."""
