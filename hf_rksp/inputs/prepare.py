"""Model and text (or images) -> batches that the model can be called with, checked before any weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_rksp.errors import InputError
from hf_rksp.inputs.images import Images, ImageSource, load_image_processor, read_images
from hf_rksp.inputs.models import LoadedModel, load_model
from hf_rksp.inputs.source import ModelSource
from hf_rksp.inputs.text import Sequences, TextSource, cut_sequences, read_text
from hf_rksp.inputs.tokenizers import load_tokenizer


@dataclass(frozen=True)
class InputOptions:
    """How much text, and how it is cut; or which images.

    Attributes:
        source: see `TextSource`.
        tokens: at least this many tokens (2048 in the paper).
        seq_len: tokens of a sequence. batch_size: sequences of a batch. seed: of the draw of sequences.
        tokenizer: folder or Hub id, where it is not the model's own.
        images: for a vision model; text is then not read.
    """

    source: TextSource = field(default_factory=TextSource)
    tokens: int = 2048
    seq_len: int = 128
    batch_size: int = 8
    seed: int = 42
    tokenizer: str | None = None
    images: ImageSource | None = None

    def __post_init__(self) -> None:
        for name, least in (("tokens", 4), ("seq_len", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: pass a whole number of at least {least}")


@dataclass(frozen=True)
class Prepared:
    """A loaded model with its sequences of text or its images, and what the report says of both."""

    loaded: LoadedModel
    sequences: Sequences | Images
    setup: dict[str, Any]

    @property
    def model(self) -> nn.Module:
        """The model, in evaluation mode."""
        return self.loaded.model

    def batches(self, size: int) -> list[dict[str, torch.Tensor]]:
        """Batches of ``size`` sequences; an encoder-decoder reads the same text, shifted by one, in its decoder."""
        return [with_decoder_inputs(self.model, batch) for batch in self.sequences.batches(size)]


def prepare(model: ModelSource, options: InputOptions, step: Callable[[str], None] = lambda text: None) -> Prepared:
    """Read the text, load the model, cut the sequences. ``step`` is told what is being done.

    Raises:
        InputError: the text or an option does not fit; ModelLoadError: the model cannot be loaded.
    """
    if options.images is not None:
        return _with_images(model, options, options.images, step)
    step("reading the text")
    text = read_text(options.source, options.tokens)  # before the model: it is quick, and can be wrong
    step(f"loading {model.name}")
    loaded = load_model(model)
    _check_text_model(loaded.model, model.name)
    config = loaded.model.config
    _check_length(config, options.seq_len)
    source = options.tokenizer or loaded.tokenizer_source
    vocabulary = (
        getattr(config, "vocab_size", None)
        or getattr(getattr(config, "text_config", None), "vocab_size", None)
        or 50257
    )
    tokenizer, origin = load_tokenizer(
        source,
        text,
        vocabulary,
        required=options.tokenizer is not None,
        revision=model.revision if source == model.model else None,
        trust_remote_code=model.trust_remote_code,
    )
    step("cutting the text into sequences")
    sequences = cut_sequences(text, tokenizer, options.seq_len, options.tokens, options.seed, options.source)
    largest = int(sequences.ids.max())
    if largest >= vocabulary:
        raise InputError(
            f"the tokenizer gives id {largest}, and the model has {vocabulary} embeddings: pass the model's own --tokenizer"
        )
    setup = {"text": sequences.info, "tokenizer": origin, "batch_size": options.batch_size, "seed": options.seed}
    return Prepared(loaded, sequences, setup)


def _with_images(
    model: ModelSource, options: InputOptions, source: ImageSource, step: Callable[[str], None]
) -> Prepared:
    step(f"loading {model.name}")
    loaded = load_model(model)
    if getattr(loaded.model, "main_input_name", None) != "pixel_values":
        raise InputError(f"images={source.name!r}: model={model.name!r} takes no images; leave --images out")
    step("reading the images")
    processor = load_image_processor(
        loaded.tokenizer_source, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    images = read_images(source, loaded.model.config, options.tokens, options.seed, processor)
    return Prepared(loaded, images, {"images": images.info, "batch_size": options.batch_size})


def with_decoder_inputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add decoder inputs (the text shifted by the start token) for an encoder-decoder; else the batch as it is."""
    config = model.config
    if "input_ids" not in batch or not getattr(config, "is_encoder_decoder", False):
        return batch
    ids, mask = batch["input_ids"], batch["attention_mask"]
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next((token for name in names if (token := getattr(config, name, None)) is not None), 0)
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return batch | {"decoder_input_ids": shifted, "decoder_attention_mask": mask}


def _check_text_model(model: nn.Module, name: str) -> None:
    main = getattr(model, "main_input_name", "input_ids")
    towers = hasattr(model.config, "vision_config") and hasattr(model.config, "text_config")
    if main != "input_ids" or (towers and model.get_input_embeddings() is None):
        raise InputError(
            f"model={name!r} takes {main}, and `rksp audit` feeds text: "
            + ("pass --images SOURCE, or " if main == "pixel_values" else "")
            + f"call hf_rksp.profile_model(model, batches) with batches of {main} (README, 'Images and audio')"
        )


def _check_length(config: Any, seq_len: int) -> None:
    config = getattr(config, "text_config", None) or config
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0 and seq_len > limit:
            raise InputError(f"seq_len={seq_len}: the model has {limit} positions; pass --seq-len {limit} or less")
