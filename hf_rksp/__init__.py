"""Spectral profiles of the residual blocks of Hugging Face transformers, before and during training."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> module that defines it; imported on first use, so that `import hf_rksp` costs nothing.
_PUBLIC = {
    "ModelProfile": "hf_rksp.profile",
    "LayerProfile": "hf_rksp.profile",
    "profile_model": "hf_rksp.profile",
    "SpectralConfig": "hf_rksp.config",
    "RiskConfig": "hf_rksp.config",
    "Audit": "hf_rksp.audit",
    "Verdict": "hf_rksp.risk.thresholds",
    "RkspError": "hf_rksp.errors",
    "write_report": "hf_rksp.report",
    "read_report": "hf_rksp.report",
    "assess": "hf_rksp.risk.thresholds",
    "compare_profiles": "hf_rksp.compare",
    "check_model": "hf_rksp.check",
    "KSSConfig": "hf_rksp.config",
    "AlignmentConfig": "hf_rksp.config",
    "AttentionConfig": "hf_rksp.config",
    "CurvatureConfig": "hf_rksp.config",
    "DepthWarmupConfig": "hf_rksp.config",
    "MonitorConfig": "hf_rksp.config",
    "RKSPArguments": "hf_rksp.training.arguments",
    "RKSPTrainingArguments": "hf_rksp.training.arguments",
    "RKSPTrainer": "hf_rksp.training.trainer",
    "RKSPTrainerMixin": "hf_rksp.training.trainer",
    "RKSPCallback": "hf_rksp.training.callback",
    "SpectralShaper": "hf_rksp.training.kss.shaper",
    "AlignmentMonitor": "hf_rksp.training.monitors.alignment",
    "AttentionMonitor": "hf_rksp.training.monitors.attention",
    "DivergenceGuard": "hf_rksp.training.guard.guard",
    "GuardConfig": "hf_rksp.config",
    "DepthWarmup": "hf_rksp.training.depth_warmup",
    "CurvatureMonitor": "hf_rksp.training.monitors.curvature",
    "SpectralMonitor": "hf_rksp.training.monitors.spectrum",
    "Diagnosis": "hf_rksp.doctor.diagnose",
    "diagnose": "hf_rksp.doctor.diagnose",
    "TrainingRun": "hf_rksp.training.loop",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
