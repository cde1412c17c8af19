"""From a model and its batches to facts: its spectral profile, and what one step of training would do."""

from hf_rksp.profile.curvature import CurvatureMeasurement, measure_curvature
from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.model import ModelProfile, profile_model
from hf_rksp.profile.step import StepMeasurement, measure_step

__all__ = [
    "CurvatureMeasurement",
    "LayerProfile",
    "ModelProfile",
    "StepMeasurement",
    "measure_curvature",
    "measure_step",
    "profile_model",
]
