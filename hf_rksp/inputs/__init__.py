"""What an audit starts from: a model, and text or images. Uses transformers, datasets and peft."""

from hf_rksp.capture.calling import with_decoder_inputs
from hf_rksp.inputs.configs import load_config
from hf_rksp.inputs.images import Images, ImageSource
from hf_rksp.inputs.models import LoadedModel, load_model
from hf_rksp.inputs.prepare import InputOptions, Prepared, prepare
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.source import DTYPES, ModelSource
from hf_rksp.inputs.text import BUILTIN, Sequences, TextSource, cut_sequences, read_text
from hf_rksp.inputs.tokenizers import load_tokenizer, train_byte_level_bpe

__all__ = [
    "BUILTIN",
    "DTYPES",
    "PRESETS",
    "ImageSource",
    "Images",
    "InputOptions",
    "LoadedModel",
    "ModelSource",
    "Prepared",
    "Sequences",
    "TextSource",
    "cut_sequences",
    "load_config",
    "load_model",
    "load_tokenizer",
    "prepare",
    "read_text",
    "train_byte_level_bpe",
    "with_decoder_inputs",
]
