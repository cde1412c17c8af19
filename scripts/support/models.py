"""Model types and the classes that they are tried with."""

from __future__ import annotations

import importlib
import os
import sys

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES, model_type_to_module_name

#: Heads that a training run is tried with, in the order of choice: the name of the mapping, what the labels are.
HEADS = (
    ("CAUSAL_LM", "tokens"),
    ("MASKED_LM", "tokens"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "target"),
    ("SPEECH_SEQ_2_SEQ", "target"),
    ("IMAGE_TEXT_TO_TEXT", "tokens"),
    ("MULTIMODAL_LM", "tokens"),
    ("CTC", "characters"),
    ("SEQUENCE_CLASSIFICATION", "class"),
    ("IMAGE_CLASSIFICATION", "class"),
    ("VIDEO_CLASSIFICATION", "class"),
    ("AUDIO_CLASSIFICATION", "class"),
)


#: Types whose whole model is another class than the one that the Auto classes give.
CLASSES = {
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}


_SESSION = "its forward takes an inference session over the frames of a video, which a Trainer does not make"
#: Types whose forward is not called with a batch, and why.
NOT_CALLED = {
    "edgetam_video": _SESSION,
    "sam2_video": _SESSION,
    "sam3_tracker_video": _SESSION,
    "sam3_video": _SESSION,
}
#: Containers without a forward of their own, and the part that is called in their place: its class, its configuration.
INNER = {
    "bark": ("BarkSemanticModel", "semantic_config"),
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "thinker_config"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", "thinker_config"),
}
#: Parts of a model of another package.
WHOLES = {"layoutxlm": "layoutlmv2", "nougat": "vision-encoder-decoder"}


def model_types() -> list[str]:
    """All model types of the installed transformers."""
    return list(CONFIG_MAPPING_NAMES)


def base_class(model_type: str) -> type[PreTrainedModel] | None:
    """The class of the bare model: that of AutoModel, of another Auto class, or the one that takes the configuration."""
    if model_type in INNER:
        return getattr(transformers, INNER[model_type][0])
    names = [CLASSES.get(model_type), modeling_auto.MODEL_MAPPING_NAMES.get(model_type)]
    names += [mapping[model_type] for mapping in _mappings() if model_type in mapping]
    for name in names:
        if isinstance(name, (list, tuple)):
            name = name[0]
        found = getattr(transformers, name, None) if name else None
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    return _own_class(CONFIG_MAPPING[model_type])


def head_classes(model_type: str) -> list[tuple[type[PreTrainedModel], str]]:
    """Classes with a loss of their own, each with what its labels are."""
    found = []
    for head, labels in HEADS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES")
        name = mapping.get(model_type)
        name = name[0] if isinstance(name, (list, tuple)) else name
        if name and hasattr(transformers, name):
            found.append((getattr(transformers, name), labels))
    return found


def without_forward(kind: type) -> str | None:
    """A reason where the class has no forward at all."""
    return f"{kind.__name__} has no forward" if kind.forward is nn.Module.forward else None


def inner_config(model_type: str, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that `base_class` takes."""
    return getattr(config, INNER[model_type][1]) if model_type in INNER else config


def build(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with the random weights of its class."""
    return kind._from_config(config)


def _mappings() -> list[dict[str, str]]:
    names = sorted(name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_") and name.endswith("_NAMES"))
    return [getattr(modeling_auto, name) for name in names]


def _own_class(config: type[PreTrainedConfig]) -> type[PreTrainedModel] | None:
    package, _, _ = config.__module__.rpartition(".")
    folder = os.path.dirname(sys.modules[config.__module__].__file__ or "")
    found: list[type[PreTrainedModel]] = []
    for file in sorted(os.listdir(folder)):
        if file.startswith("modeling_") and file.endswith(".py"):
            module = importlib.import_module(f"{package}.{file[:-3]}")
            found += [
                value
                for name, value in vars(module).items()
                if isinstance(value, type)
                and issubclass(value, PreTrainedModel)
                and value.__module__ == module.__name__
                and value.config_class is config
                and "PreTrained" not in name
            ]
    models = [kind for kind in found if kind.__name__.endswith("Model")]
    return next(iter(models or found), None)


def whole_of(model_type: str) -> str:
    """The model type whose model holds this part, which has no model class of its own."""
    if model_type in WHOLES:
        return WHOLES[model_type]
    package = CONFIG_MAPPING[model_type].__module__.split(".")[-2]
    others = [
        name for name in CONFIG_MAPPING_NAMES if name != model_type and model_type_to_module_name(name) == package
    ]
    return min(others, key=len)
