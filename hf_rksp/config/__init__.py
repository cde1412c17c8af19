"""Settings, checked where they are made. Imports nothing of the package but the errors."""

from hf_rksp.config.depth_warmup import DepthWarmupConfig
from hf_rksp.config.guard import GuardConfig
from hf_rksp.config.kss import KSS_SCHEDULES, BalancedKSSConfig, KSSConfig, PaperKSSConfig
from hf_rksp.config.monitors import AlignmentConfig, AttentionConfig, CurvatureConfig, MonitorConfig
from hf_rksp.config.spectrum import RiskConfig, SpectralConfig

__all__ = [
    "KSS_SCHEDULES",
    "AlignmentConfig",
    "AttentionConfig",
    "BalancedKSSConfig",
    "CurvatureConfig",
    "DepthWarmupConfig",
    "GuardConfig",
    "KSSConfig",
    "MonitorConfig",
    "PaperKSSConfig",
    "RiskConfig",
    "SpectralConfig",
]
