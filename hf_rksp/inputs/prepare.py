"""Model and text (or images) -> batches that the model can be called with, checked before any weights are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hf_rksp.capture.calling import with_decoder_inputs
from hf_rksp.errors import InputError, ModelLoadError
from hf_rksp.inputs.images import Images, ImageSource, load_image_processor, read_images
from hf_rksp.inputs.labelled import LabelledSequences, cut_labelled, read_labelled
from hf_rksp.inputs.models import LoadedModel, load_model
from hf_rksp.inputs.places import given_tokenizer, own_tokenizer
from hf_rksp.inputs.source import ModelSource
from hf_rksp.inputs.text import Sequences, TextSource, cut_sequences, read_text
from hf_rksp.inputs.tokenizers import load_tokenizer
from hf_rksp.inputs.trial import check_length


@dataclass(frozen=True)
class InputOptions:
    """How much text, and how it is cut; or which images.

    Attributes:
        source: see `TextSource`.
        tokens: at least this many tokens (2048 in the paper).
        seq_len: tokens per sequence.
        batch_size: sequences per batch.
        seed: for choosing the text passages.
        tokenizer: folder or Hub id, if different from the model.
        labels: column with the classes of the texts, for a classification; each row of the text is then a sequence of its own.
        images: for a vision model; text is then not read.
        substitute: the weights of ``model`` are random, so a tokenizer made here may stand in for one that cannot be read. Those
            of ``init`` are random anyway.
    """

    source: TextSource = field(default_factory=TextSource)
    tokens: int = 2048
    seq_len: int = 128
    batch_size: int = 8
    seed: int = 42
    tokenizer: str | None = None
    labels: str | None = None
    images: ImageSource | None = None
    substitute: bool = False

    def __post_init__(self) -> None:
        for name, least in (("tokens", 4), ("seq_len", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: pass a whole number of at least {least}")


@dataclass(frozen=True)
class Prepared:
    """A loaded model with its sequences of text or its images, and what the report says of both.

    ``notes`` are sentences that a reader of the profile has to know: a substitute for the tokenizer, weights left out.
    ``mask_token`` is the id of the tokenizer's mask token, if it has one.
    """

    loaded: LoadedModel
    sequences: Sequences | LabelledSequences | Images
    setup: dict[str, Any]
    notes: tuple[str, ...] = ()
    mask_token: int | None = None

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
    labelled = None if options.labels is None else read_labelled(options.source, options.labels)
    # Before the model: it is quick, and can be wrong.
    text = "\n".join(labelled.texts) if labelled else read_text(options.source, options.tokens)
    if labelled:
        model = replace(model, classes=labelled.classes)
    substitute = (options.substitute or model.init is not None) and options.tokenizer is None
    place = given_tokenizer(options.tokenizer) if options.tokenizer is not None else own_tokenizer(model)
    load = functools.partial(
        load_tokenizer,
        place,
        text,
        revision=model.revision if place is not None and place.path == model.model else None,
        trust_remote_code=model.trust_remote_code,
    )
    tokenizer, origin, refusal = None, "", None
    if not substitute:  # before the weights: it is quick, and can be wrong
        try:
            tokenizer, origin = load(0)
        except ModelLoadError as error:
            refusal = (
                ModelLoadError(f"tokenizer={options.tokenizer!r}: {error}") if options.tokenizer is not None else error
            )
            if options.tokenizer is not None or not _may_take_no_text(model):
                raise refusal from None
    step(f"loading {model.name}")
    loaded = load_model(model)
    _check_text_model(loaded.model, model.name)
    if refusal is not None:
        raise refusal
    vocabulary = _vocabulary(loaded.model)
    notes = list(loaded.notes)
    if tokenizer is None:
        tokenizer, origin = load(vocabulary or 50257, substitute=True)
    if "trained on this text" in origin or "of the text" in origin:
        notes.append(f"Tokenizer: {origin}.")
    step("cutting the text into sequences")
    sequences: Sequences | LabelledSequences
    if labelled:
        count = options.tokens // options.seq_len
        sequences = cut_labelled(labelled, tokenizer, options.seq_len, count, options.seed, options.source)
        config: Any = loaded.model.config
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id  # where a causal model looks for the last token
    else:
        sequences = cut_sequences(text, tokenizer, options.seq_len, options.tokens, options.seed, options.source)
    largest = int(sequences.ids.max())
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"the tokenizer gives id {largest}, and the model has {vocabulary} embeddings: pass the model's own --tokenizer"
        )
    name = model.model or ""
    if options.tokenizer is None and place is not None and name.startswith("package:"):
        origin = origin.replace(str(place), name)  # not where the package lies on this machine
    setup = {"text": sequences.info, "tokenizer": origin, "batch_size": options.batch_size, "seed": options.seed}
    prepared = Prepared(loaded, sequences, setup, tuple(notes), getattr(tokenizer, "mask_token_id", None))
    first = Sequences(sequences.ids[:1], {})
    check_length(
        loaded.model,
        lambda n: with_decoder_inputs(loaded.model, Sequences(first.ids[:, :n], {}).batches(1)[0]),
        options.seq_len,
        model.name,
        streamed=loaded.weights is not None,
    )
    return prepared


def _may_take_no_text(source: ModelSource) -> bool:
    """Whether the model is one for images or sound, which no tokenizer is missed in: that is for its own error to say."""
    from transformers import MODEL_MAPPING, AutoConfig

    assert source.model is not None
    try:
        config = AutoConfig.from_pretrained(source.model, revision=source.revision)
        kind: Any = MODEL_MAPPING[type(config)]  # a class; transformers annotates a tuple
        main = kind.main_input_name
    except Exception:  # what is wrong with it is said when it is loaded
        return False
    return main != "input_ids" or hasattr(config, "vision_config")


def _token_table(model: nn.Module) -> nn.Module | None:
    """The table of the tokens' embeddings; ``None`` for a model without one."""
    table_of = getattr(model, "get_input_embeddings", lambda: None)
    try:
        table: nn.Module | None = table_of()
    except (AttributeError, NotImplementedError):
        return None
    return table


def _vocabulary(model: nn.Module) -> int | None:
    """Rows of the table of tokens; ``None`` for a model that hashes characters and has none."""
    rows = getattr(_token_table(model), "num_embeddings", None)
    config = model.config
    inner = getattr(config, "text_config", None)
    return rows or getattr(config, "vocab_size", None) or getattr(inner, "vocab_size", None)


def _with_images(
    model: ModelSource, options: InputOptions, source: ImageSource, step: Callable[[str], None]
) -> Prepared:
    step(f"loading {model.name}")
    loaded = load_model(model)
    if getattr(loaded.model, "main_input_name", None) != "pixel_values":
        raise InputError(f"images={source.name!r}: model={model.name!r} takes no images; leave --images out")
    step("reading the images")
    processor = load_image_processor(
        loaded.processor_source, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    images = read_images(source, loaded.model.config, options.tokens, options.seed, processor)
    setup = {"images": images.info, "batch_size": options.batch_size}
    return Prepared(loaded, images, setup, loaded.notes)


def _check_text_model(model: nn.Module, name: str) -> None:
    main = getattr(model, "main_input_name", "input_ids")
    towers = hasattr(model.config, "vision_config") and hasattr(model.config, "text_config")
    if main != "input_ids" or (towers and _token_table(model) is None):
        takes = "text and images" if main == "input_ids" else main
        raise InputError(
            f"model={name!r} takes {takes}, and `rksp audit` feeds text: "
            + ("pass --images SOURCE, or " if main == "pixel_values" else "")
            + f"call hf_rksp.profile_model(model, batches) with batches of {takes} (README, 'Images and audio')"
        )
