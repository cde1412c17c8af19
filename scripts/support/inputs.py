"""Inputs that a model's own forward takes, made from its signature and its configuration.

`feed(model)` tries the ways in which a forward of such a signature may be called, the richest first (padded texts, images in
the text), and returns the first that the model takes, with what it knows of the padding: the truth that a profile is held to.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from support.batches import NotThisWay
from support.recipes import RECIPES
from support.ways import ways

SEQUENCES = 8
TEXT = 19
DECODER = 13
SAMPLES = 8000
FRAMES = 48
#: Types whose small batches have fewer tokens than KSS asks for -> how many of them make one batch of a training run.
LARGER = {
    "instructblip": 2,
    "levit": 4,
    "lxmert": 2,
    "muse_glimmer_assistant": 2,
    "oneformer": 2,
    "pi0": 2,
    "qwen3_omni_moe_talker_code_predictor": 4,
    "time_series_transformer": 2,
    "timesfm": 4,
    "timesfm2_5": 4,
    "unlimited_ocr": 4,
    "unlimited_ocr_vision": 4,
    "vit_mae": 2,
}


class NotFed(Exception):
    """No way of calling the model was found; the message says what the last one met."""


@dataclass
class Feed:
    """Batches and what is padding in them.

    Attributes:
        batches: each a mapping of arguments.
        padded: name of an argument -> its mask of shape (sequences, places), where something is padding.
        kind: which way of calling it was.
        sequences: how many there are in a batch.
    """

    batches: list[dict[str, Any]]
    padded: list[dict[str, Tensor]] = field(default_factory=list)
    kind: str = ""
    sequences: int = SEQUENCES


class Maker:
    """Makes arguments for one model; a generator of its own, so that the same model gets the same input."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self.model = model
        self.config = model.config
        self.names = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        self.generator = torch.Generator().manual_seed(seed)
        self.padded: dict[str, Tensor] = {}
        self.length = TEXT  # of the text that was made

    # --- what the configuration says ---

    def find(self, *names: str, default: Any = None, inside: str = "") -> Any:
        """The first of ``names`` in the configuration, else in those inside it whose field holds ``inside``."""
        for name in names:
            for config in _configs(self.config, inside):
                value = vars(config).get(name, getattr(type(config), name, None) if name in _maps(config) else None)
                if name in _maps(config):
                    value = vars(config).get(_maps(config)[name], value)
                if value is not None and not callable(value):
                    return value
        return default

    @property
    def vocabulary(self) -> int:
        table = None
        with contextlib.suppress(NotImplementedError, AttributeError):
            table = self.model.get_input_embeddings()
        stated = self.find("vocab_size", "src_vocab_size", default=None)
        rows = getattr(table, "num_embeddings", None) or (table.weight.shape[0] if _is_table(table) else None)
        return min(
            (value for value in (stated, rows) if isinstance(value, int)), default=300
        )  # characters have no table

    def special(self) -> set[int]:
        """Ids that mean something to the model."""
        found = set()
        for config in _configs(self.config):
            for name, value in vars(config).items():
                if name.endswith(("_token_id", "_token_index", "_id", "_token_ids")):
                    found |= {
                        item
                        for item in (value if isinstance(value, (list, tuple)) else [value])
                        if isinstance(item, int)
                    }
                if name == "vocabulary_map":
                    found |= set(value.values())
        return found

    # --- texts ---

    def ids(self, length: int = TEXT, vocabulary: int | None = None, plain: bool = False) -> Tensor:
        top = vocabulary or self.vocabulary
        allowed = [i for i in range(min(top, 2), top) if plain or i not in self.special()]
        allowed = allowed or list(range(top))
        drawn = torch.randint(len(allowed), (SEQUENCES, length), generator=self.generator)
        return torch.tensor(allowed)[drawn]

    @staticmethod
    def mask(length: int, step: int = 2) -> Tensor:
        lengths = torch.tensor([length - step * (i % 5) for i in range(SEQUENCES)])
        return (torch.arange(length) < lengths[:, None]).long()

    def text(
        self, name: str = "input_ids", mask: str = "attention_mask", length: int = TEXT, pad: bool = True
    ) -> dict[str, Tensor]:
        places = [self.find("max_position_embeddings", "n_positions", default=length)]
        length = min([length, *(place - 1 for place in places if isinstance(place, int) and place > 8)])
        self.length = length
        ids = self.ids(length)
        if mask not in self.names or not pad:
            return {name: ids}
        keep = self.mask(length)
        padding = self.find("pad_token_id", default=0)
        padding = padding if isinstance(padding, int) and 0 <= padding < self.vocabulary else 0
        self.padded[name] = keep
        return {name: torch.where(keep.bool(), ids, padding), mask: keep}

    # --- images ---

    @property
    def side(self) -> tuple[int, int]:
        size = self.find("image_size", "img_size", "max_image_size", "input_size", default=None)
        size = size.get("longest_edge", size.get("height", 32)) if isinstance(size, dict) else size
        if isinstance(size, (list, tuple)):
            return int(size[-2]), int(size[-1])
        stages = self.find("depths", default=None)
        size = size if isinstance(size, int) and size >= 16 else 128 if stages else 64
        return size, size

    @property
    def channels(self) -> int:
        return self.find(
            "num_channels", "in_channels", "in_chans", "num_input_channels", default=3, inside="vision|backbone|image|"
        )

    def image(self, side: tuple[int, int] | None = None, frames: int | None = None) -> Tensor:
        height, width = side or self.side
        channels = self.channels if isinstance(self.channels, int) else 3
        shape = (SEQUENCES, channels, height, width) if frames is None else (SEQUENCES, frames, channels, height, width)
        return self.normal(*shape)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def patches(self, grid: tuple[int, int, int] = (1, 4, 4), count: int = SEQUENCES) -> tuple[Tensor, Tensor]:
        """Flat patches without a batch dimension, and their grids: what the Qwen family takes."""
        patch = self.find("patch_size", default=8, inside="vision|")
        patch = patch[0] if isinstance(patch, (list, tuple)) else patch
        frames = self.find("temporal_patch_size", "patch_temporal", default=1, inside="vision|")
        size = self.channels * frames * patch * patch
        return self.normal(count * math.prod(grid), size), torch.tensor([grid] * count)


def feed(model: nn.Module, batches: int = 2, model_type: str | None = None) -> Feed:
    """The first way of calling that ``model`` takes.

    Raises:
        NotFed: with the reason that each way met.
    """
    reasons: list[str] = []
    model_type = model_type or model.config.model_type
    for kind, way in _ways(model, model_type):
        try:
            made, padded = [], []
            for seed in range(batches):
                maker = Maker(model, seed)
                batch = way(maker)
                run(model, batch)
                made.append(batch)
                padded.append({name: mask for name, mask in maker.padded.items() if name in batch})
            return Feed(made, padded, kind)
        except (NotThisWay, StopIteration):  # not a way of this model
            continue
        except Exception as error:
            reasons.append(f"{kind}: {type(error).__name__}: {str(error)[:160]}")
    raise NotFed(" | ".join(dict.fromkeys(reasons)) or "no way of calling it is known")


def to_train(model: nn.Module, fed: Feed, model_type: str) -> Feed:
    """``fed``, or larger batches of the same kind where its own have too few tokens for KSS."""
    count = LARGER.get(model_type, 1)
    if count == 1:
        return fed
    more = feed(model, count * len(fed.batches), model_type).batches
    joined = [_joined(more[i : i + count]) for i in range(0, len(more), count)]
    return Feed(joined, kind=fed.kind, sequences=count * fed.sequences)


def _joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch with the sequences of all; what is no tensor is that of the first."""
    return {
        name: torch.cat([batch[name] for batch in batches]) if isinstance(value, Tensor) and value.ndim else value
        for name, value in batches[0].items()
    }


def run(model: nn.Module, batch: Mapping[str, Any], **more: Any) -> Any:
    """The model on ``batch`` as a profile runs it."""
    with torch.no_grad():
        return model(**batch, **more)


def _ways(model: nn.Module, model_type: str) -> Iterator[tuple[str, Callable[[Maker], dict[str, Any]]]]:
    if model_type in RECIPES:
        yield "recipe", lambda maker: RECIPES[model_type](maker)
        return
    names = Maker(model).names
    mains = [name for name in _MAIN if name in names]
    yield from ways(names, mains)


_MAIN = (
    "input_ids",
    "pixel_values",
    "pixel_values_videos",
    "input_features",
    "input_values",
    "past_values",
    "hidden_states",
)


def _configs(config: Any, inside: str = "") -> Iterator[Any]:
    """The configuration and those inside it; with ``inside`` those whose field holds one of its words come first."""
    import re

    from transformers import PreTrainedConfig

    children = [(name, value) for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)]
    if inside:
        children.sort(key=lambda item: not re.search(inside.strip("|") or "$", item[0]))
        named = [value for name, value in children if re.search(inside.strip("|"), name)]
        for value in named:
            yield from _configs(value)
    yield config
    for _, value in children:
        yield from _configs(value)


def _maps(config: Any) -> Mapping[str, str]:
    return type(config).attribute_map or {}


def _is_table(table: Any) -> bool:
    return isinstance(getattr(table, "weight", None), Tensor) and table.weight.ndim == 2
