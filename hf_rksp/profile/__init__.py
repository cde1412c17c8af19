"""From a model and its batches to a profile: gather the moments, solve the layers, aggregate over depth."""

from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.model import ModelProfile, profile_model

__all__ = ["LayerProfile", "ModelProfile", "profile_model"]
