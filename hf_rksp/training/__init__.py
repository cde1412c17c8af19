"""Train with KSS and watch the spectrum: for Trainer, for accelerate, and for loops of your own."""

from hf_rksp.training.arguments import RKSPArguments, RKSPTrainingArguments
from hf_rksp.training.callback import RKSPCallback
from hf_rksp.training.depth_warmup import DepthWarmup
from hf_rksp.training.kss.shaper import SpectralShaper
from hf_rksp.training.loop import TrainingRun
from hf_rksp.training.monitors.alignment import AlignmentMonitor
from hf_rksp.training.monitors.attention import AttentionMonitor
from hf_rksp.training.monitors.curvature import CurvatureMonitor
from hf_rksp.training.monitors.spectrum import SpectralMonitor
from hf_rksp.training.parser import parse_arguments
from hf_rksp.training.trainer import RKSPTrainer, RKSPTrainerMixin

__all__ = [
    "AlignmentMonitor",
    "AttentionMonitor",
    "CurvatureMonitor",
    "DepthWarmup",
    "RKSPArguments",
    "RKSPCallback",
    "RKSPTrainer",
    "RKSPTrainerMixin",
    "RKSPTrainingArguments",
    "SpectralMonitor",
    "SpectralShaper",
    "TrainingRun",
    "parse_arguments",
]
