"""Settings of a training run: for HfArgumentParser, for YAML and JSON files, for TrainingArguments of any kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_rksp.config import KSSConfig, MonitorConfig


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
    kss_rank: int = _option(32, "Directions that the states are projected on, at most the width of the model.")
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
        # Checked here, before a model is loaded or a process group is made.
        self.kss_config()
        self.monitor_config()

    def kss_config(self) -> KSSConfig | None:
        """Settings of KSS, or ``None`` if it is off.

        Raises:
            InputError: a value that KSS cannot have; the message names it without the prefix ``kss_``.
        """
        names = [name.removeprefix("kss_") for name in RKSPArguments.__dataclass_fields__ if name.startswith("kss_")]
        config = KSSConfig(**{name: getattr(self, f"kss_{name}") for name in names})
        return config if self.kss and config.weight else None

    def monitor_config(self) -> MonitorConfig | None:
        """Settings of the monitor, or ``None`` if it is off."""
        names = ("every", "at_start", "at_end", "data", "rank", "per_layer", "report")
        config = MonitorConfig(**{name: getattr(self, f"rksp_{name}") for name in names})
        return config if self.rksp_monitor else None


@dataclass
class RKSPTrainingArguments(RKSPArguments, TrainingArguments):
    """TrainingArguments with the fields of KSS (``kss_...``) and of the monitor (``rksp_...``)."""
