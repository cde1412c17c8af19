"""Architectures of the zoo that transformers does not have, in its own form: saved, loaded and built by its Auto classes.

Importing this registers them, so that ``AutoModel.from_pretrained`` reads a folder that ``save_pretrained`` wrote.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

from hf_rksp.architectures.gpt2_kan import GPT2KanConfig, GPT2KanForCausalLM, GPT2KanModel
from hf_rksp.architectures.splines import KanLinear
from hf_rksp.architectures.vit_rmsnorm import ViTRMSNormConfig, ViTRMSNormForImageClassification, ViTRMSNormModel

AutoConfig.register(GPT2KanConfig.model_type, GPT2KanConfig, exist_ok=True)
AutoModel.register(GPT2KanConfig, GPT2KanModel, exist_ok=True)
AutoModelForCausalLM.register(GPT2KanConfig, GPT2KanForCausalLM, exist_ok=True)
AutoConfig.register(ViTRMSNormConfig.model_type, ViTRMSNormConfig, exist_ok=True)
AutoModel.register(ViTRMSNormConfig, ViTRMSNormModel, exist_ok=True)
AutoModelForImageClassification.register(ViTRMSNormConfig, ViTRMSNormForImageClassification, exist_ok=True)

__all__ = [
    "GPT2KanConfig",
    "GPT2KanForCausalLM",
    "GPT2KanModel",
    "KanLinear",
    "ViTRMSNormConfig",
    "ViTRMSNormForImageClassification",
    "ViTRMSNormModel",
]
