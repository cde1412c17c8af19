"""What a batch says: its texts, images or sounds, how many sequences they make, and what of them is padding."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_rksp.errors import CaptureError

#: The label of a token without a loss, in every loss of transformers.
IGNORED = -100
#: Entries that describe the contents, by a word in their name: a state does not stand for one of their numbers.
_DESCRIBES = re.compile(
    "mask|label|position|token_type|segment|grid|size|length|indices|index|langs|cache|bbox|head|start|end|num_|shape|"
    "ratio|scale|offset|time_features|static|future|task|target|weight|type|category|second|threshold|clusters|structure"
)
#: Masks of transformers that are 1 where there is no padding.
_SURE = re.compile("(^|_)(attention|observed|pixel|features|values)_mask(_[a-z0-9])?$")
#: Masks that say something else than what is padding, by a word in their name.
_OTHER_MASKS = re.compile(
    "global|cross|special|masked|label|loss|perm|head|aspect|causal|span|predict|mlm|pair|token|image|visual|vision|video|"
    "frame|patch|box|speech|audio|entity|object|point"
)
#: An additive mask hides what it lowers by more than this. Masks of -10000 are in use; the bias of far tokens is smaller.
_HIDDEN = -5000.0
#: What tells the parts of a batch apart in the names of their masks.
_STEMS = ("decoder", "pixel", "image", "visual", "video", "audio", "feature", "entity", "qformer", "past", "speech")


@dataclass(frozen=True)
class Content:
    """One entry of a batch that states stand for.

    Attributes:
        name: in the batch.
        value: token ids (integers), or pixels, samples, features (floating point).
        real: shape of the leading axes of ``value``, true where there is no padding; ``None`` if all is real.
        sequence: shape ``(value.shape[0],)`` int64, the sequence of each entry along the first axis.
        sequences: their number.
        decoder: whether it goes into the decoder of an encoder-decoder.
        mask: entry of the batch that ``real`` was read from, if its name alone does not say what it marks: it may be padding, and
            the other way round, or something else.
    """

    name: str
    value: Tensor
    real: Tensor | None
    sequence: Tensor
    sequences: int
    decoder: bool = False
    mask: str | None = None

    @property
    def discrete(self) -> bool:
        """Whether these are ids."""
        return not self.value.is_floating_point()

    @property
    def blank(self) -> Tensor | None:
        """Of shape ``(sequences, images)``: which images of several per sequence are zero everywhere, if any is."""
        if self.discrete or self.value.ndim < 5:
            return None
        empty = (self.value == 0).flatten(2).all(2)
        return empty if bool(empty.any()) else None


def contents_of(batch: Mapping[str, Any], encoder_decoder: bool = False) -> list[Content]:
    """The contents of ``batch``, in its order; what says nothing of its own (masks, positions, labels) is left out.

    Raises:
        CaptureError: the mask is of a kind that cannot be read.
    """
    named = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.ndim >= 1}
    values = {name: value for name, value in named.items() if not _DESCRIBES.search(name) and _says_something(value)}
    if not values and "labels" not in named:
        return []
    made = []
    for name, value in values.items():
        decoder = encoder_decoder and name.startswith("decoder")
        real, mask = _real(name, value, batch, decoder, values)
        made.append(Content(name, value, real, *_sequences(value, named), decoder, mask))
    if encoder_decoder:
        if not any(content.decoder for content in made):
            made += _made_by_the_model(named, made)
        labels = named.get("labels")  # collators give a decoder no mask: padding is what has no loss at the ends
        made = [
            replace(content, real=~_padding_by_labels(labels, content.value))
            if content.decoder and content.real is None and labels is not None and labels.shape == content.value.shape
            else content
            for content in made
        ]
    return made


def sequences_of(contents: Sequence[Content]) -> int:
    """The number of sequences of a batch: its texts, else what its first content has."""
    return next((content.sequences for content in contents if content.discrete), contents[0].sequences)


def _padding_by_labels(labels: Tensor, ids: Tensor) -> Tensor:
    """Where the decoder's ids are padding: what has no loss behind the last token that has one.

    In front of the first there may be a prompt; it is padding if its ids are one and the same.
    """
    lost = labels == IGNORED
    behind = lost.flip(-1).cumprod(-1).flip(-1).bool()
    front = lost.cumprod(-1).bool() & ~behind
    return behind | (front if bool(front.any()) and len(ids[front].unique()) == 1 else torch.zeros_like(front))


def _says_something(value: Tensor) -> bool:
    return (value.is_floating_point() and value.ndim >= 2) or value.dtype in (torch.int64, torch.int32)


def _made_by_the_model(named: Mapping[str, Tensor], made: list[Content]) -> list[Content]:
    """The inputs of a decoder that the model makes of its labels, or of the text, by shifting them."""
    labels = named.get("labels")
    if labels is not None and labels.ndim == 2 and not labels.is_floating_point():
        real = named.get("decoder_attention_mask")
        real = labels != IGNORED if real is None or real.shape != labels.shape else real.bool()
        return [Content("labels", labels, real, torch.arange(len(labels)), len(labels), True)]
    return [
        Content(text.name, text.value, text.real, text.sequence, text.sequences, True)
        for text in made
        if text.name == "input_ids"
    ]


def _sequences(value: Tensor, named: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The sequence of each entry along the first axis: patches of images of one tensor belong to their image."""
    entries = value.shape[0]
    if value.is_floating_point():
        for name, grid in named.items():
            if "grid" in name and grid.ndim == 2 and int((patches := grid.prod(1)).sum()) == entries:
                return torch.arange(len(grid)).repeat_interleave(patches.cpu()), len(grid)
    return torch.arange(entries), entries


def _real(
    name: str, value: Tensor, batch: Mapping[str, Any], decoder: bool, contents: Collection[str]
) -> tuple[Tensor | None, str | None]:
    """What is real of a content, and the mask that says so if it is not sure that it does."""
    if not value.is_floating_point() and name.endswith("ids"):
        own = batch.get(name.removesuffix("input_ids").removesuffix("ids") + "attention_mask")
        if own is not None:
            return text_mask(own, value, any("past" in key or "cache" in key for key in batch)), None
    fitting = {
        key: mask
        for key, mask in batch.items()
        if isinstance(mask, Tensor)
        and "mask" in key
        and (_SURE.search(key) or key.startswith(f"{_stem(name)}_") or not _OTHER_MASKS.search(key))
        and not re.search("global|cross|token_type", key)
        and key.startswith("decoder") == decoder
        and _fits(mask, value)
    }
    chosen = _of_the_name(name, fitting, contents)
    if chosen is None:
        return _by_lengths(name, value, batch)
    sure = bool(_SURE.search(chosen))
    return _as_real(chosen, fitting[chosen]), None if sure else chosen


def _of_the_name(name: str, fitting: Mapping[str, Tensor], contents: Collection[str]) -> str | None:
    """Of the masks that fit a content, the one that is its own by its name, else one that is no other content's."""
    own = [key for key in fitting if key.startswith(f"{_stem(name)}_")]
    ending = re.search("_[a-z0-9]$", name)  # "input_ids_a" and "attention_mask_a"
    if ending:
        own = own or [key for key in fitting if key.endswith(ending[0])]
    if not own:
        others = [f"{_stem(other)}_" for other in contents if other != name]
        free = [key for key in fitting if not key.startswith(tuple(others))]
        stem = next((stem for stem in _STEMS if stem in name), "")
        own = [key for key in free if stem and stem in key]
        own = own or [key for key in free if not any(other in key for other in _STEMS if other != stem)]
    return max(own, key=lambda key: fitting[key].ndim) if own else None


def _as_real(key: str, mask: Tensor) -> Tensor:
    """A mask as truth values: of 0 and 1, or of 0 and large negative numbers; XLNet's ``input_mask`` is 1 at the padding."""
    if mask.is_floating_point() and bool((mask <= 0).all()) and bool((mask < _HIDDEN).any()):
        return mask > _HIDDEN
    return mask == 0 if key == "input_mask" else mask != 0


def _by_lengths(name: str, value: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor | None, str | None]:
    """What is real by the number of places of each row."""
    for key in (f"{_stem(name)}_lengths", f"{_stem(name)}_length", "lengths", "length", "input_lengths", "seq_lengths"):
        lengths = batch.get(key)
        if isinstance(lengths, Tensor) and lengths.shape == value.shape[:1] and value.ndim >= 2:
            if not lengths.is_floating_point() and 0 < int(lengths.min()) and int(lengths.max()) <= value.shape[1]:
                return torch.arange(value.shape[1], device=lengths.device) < lengths[:, None], key
    return None, None


def other_mask(key: str, value: Tensor, content: Content) -> Tensor:
    """The entry ``key`` of a batch if it said the opposite; of lengths, that all is real."""
    assert content.real is not None
    if value.shape != content.real.shape:
        return torch.full_like(value, content.value.shape[1])
    if value.dtype == torch.bool:
        return ~value
    if value.is_floating_point() and bool((value < _HIDDEN).any()):
        return torch.where(value > _HIDDEN, value.min(), torch.zeros_like(value))
    return (value == 0).to(value.dtype)


def _stem(name: str) -> str:
    """What the name of a content has in common with that of its mask: "doc" of "doc_ids" and "doc_attention_mask"."""
    if name.startswith("input"):
        return name
    for ending in ("_input_ids", "_ids", "_values", "_features", "_embeds", "_tokens"):
        if name.endswith(ending) and name != ending[1:]:
            return name.removesuffix(ending)
    return name


def _fits(mask: Tensor, value: Tensor) -> bool:
    """Whether ``mask`` says of ``value`` what is real: it has its first axes, or all but the channels."""
    shape, own = tuple(value.shape), tuple(mask.shape)
    if len(own) < 2:
        return False
    without = [shape[:axis] + shape[axis + 1 :] for axis in (1, 2) if len(shape) > axis + 1]
    return shape[: len(own)] == own or own in without


def text_mask(mask: object, ids: Tensor, cached: bool = False) -> Tensor | None:
    """Of the attention mask of a text: true where there is no padding; ``None`` if all is real.

    A mask of four dimensions says for each query what it attends to: see `_seen_by_any`. The tokens of a cache stand in front
    of the ids in the mask.

    Args:
        mask: as the model is given it.
        ids: shape ``(batch, tokens)``, or ``(batch, choices, tokens)``.
        cached: whether the batch has a cache.

    Raises:
        CaptureError: the mask has another form.
    """
    if isinstance(mask, Mapping):  # one for each kind of layer
        mask = next(iter(mask.values()), None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise CaptureError(
            f"attention_mask is a {type(mask).__name__}, which does not say what is padding: pass a tensor of 0 and 1 of "
            "shape (batch, tokens)"
        )
    given = tuple(mask.shape)
    if mask.ndim == 3 and ids.ndim == 2:
        mask = mask[:, None]
    if mask.ndim == 4:
        mask = _seen_by_any(mask, ids)
    if mask.ndim not in (2, ids.ndim) or (ids.ndim > 1 and ids[..., 0].numel() % mask.shape[0]):
        raise CaptureError(
            f"attention_mask has shape {given}, which does not say of ids of shape {tuple(ids.shape)} what is padding: pass a "
            "mask of 0 and 1 of shape (batch, tokens)"
        )
    if mask.ndim == ids.ndim == 2 and mask.shape[1] != ids.shape[1]:
        missing = ids.shape[1] - mask.shape[1]
        if missing > 0:  # transformers hides what a mask does not reach
            mask = torch.nn.functional.pad(mask, (0, missing))
        elif cached:
            mask = mask[:, -ids.shape[1] :]
    if mask.ndim == ids.ndim and mask.shape[0] == 1 and mask.shape[1:] == ids.shape[1:]:  # one mask for all texts
        mask = mask.expand(ids.shape)
    return mask != 0


def attended(mask: Tensor) -> Tensor:
    """Of a mask ``(batch, heads, queries, keys)``, boolean or additive: which keys are attended to by any query.

    A row of padding that attends to everything, so that it is not empty, does not count.
    """
    return _attends(mask).any(1)


def _attends(mask: Tensor) -> Tensor:
    """Shape ``(batch, queries, keys)``: whether a query attends to a key in any head."""
    seen = (mask > _HIDDEN if mask.is_floating_point() else mask != 0).any(1)
    full = seen.all(2)
    # The last row of a causal mask rightly sees everything, and no other row does.
    made_full = full & ~full.all(1, keepdim=True) & (full.sum(1, keepdim=True) > full[:, -1:].long())
    return seen & ~made_full[:, :, None]


def _seen_by_any(mask: Tensor, ids: Tensor) -> Tensor:
    """Of a mask ``(batch, heads, queries, keys)``: which tokens are no padding.

    A token that no query attends to is padding. So are tokens that attend to themselves and their like alone.
    """
    seen = _attends(mask)
    real = seen.any(1)
    if seen.shape[1:] != (ids.shape[-1],) * 2 or len(seen) != len(ids):
        return real
    company = (seen | seen.mT) & (ids[:, :, None] != ids[:, None])
    alone = real & ~company.any(2)
    # A packed text of one token is alone as well, but several of those are different words.
    if int(alone.sum()) > 1 and len(ids[alone].unique()) == 1 and not bool(alone[real].all()):
        real = real & ~alone
    return real
