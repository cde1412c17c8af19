"""Ways of calling a forward, the richest first, by the names in its signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class NotThisWay(Exception):
    """The configuration says that the model is not called like that."""


Way = tuple[str, Callable[[Any], dict[str, Any]]]


def ways(names: dict[str, Any], mains: list[str]) -> Iterator[Way]:
    """All that may fit, each a name and a function of an `inputs.Maker`."""
    has = set(names)
    text, pixels = "input_ids" in has, "pixel_values" in has
    sounds = [name for name in ("input_features", "input_values", "audio_values", "audio_mel") if name in has]
    needed = {name for name, parameter in names.items() if parameter.default is parameter.empty}
    if "past_values" in has:
        yield from _series()
    if text and pixels:
        yield from _text_with("pixel_values", _IMAGES)
        yield from _text_with("", _IMAGES)
    if text and sounds:
        for sound in sounds:
            yield from _text_with(sound, _sounds(sound))
            yield from _text_with("", _sounds(sound))
    if text and "pixel_values_videos" in has and not pixels:
        yield from _text_with("pixel_values_videos", _VIDEOS)
        yield from _text_with("", _VIDEOS)
    if text and not needed - {"input_ids"}:
        yield "text", lambda maker: maker.text() | _extra(maker) | _target(maker)
        yield "text without padding", lambda maker: maker.text(pad=False) | _extra(maker) | _target(maker)
    if pixels and not text:
        for name, way in _IMAGES.items():
            yield name, lambda maker, way=way: way(maker) | _extra(maker) | _target(maker)
    if "pixel_values_videos" in has and not text:
        for name, way in _VIDEOS.items():
            yield name, lambda maker, way=way: way(maker) | _extra(maker)
    for sound in sounds:
        if not text:
            for name, way in _sounds(sound).items():
                yield name, lambda maker, way=way: way(maker) | _extra(maker) | _target(maker)
    if "hidden_states" in has:
        yield "patches", lambda maker: dict(zip(("hidden_states", "grid_thw"), maker.patches(), strict=True))
    if "inputs_embeds" in has and not text:
        yield "states", lambda maker: _states(maker)


# --- beside a text ---


def _text_with(main: str, kinds: dict[str, Callable[[Any], dict[str, Any]]]) -> Iterator[Way]:
    for name, way in kinds.items():
        if main:
            yield f"text with {name}", lambda maker, way=way, main=main: fused(maker, way(maker), main)
        else:
            yield (
                f"text beside {name}",
                lambda maker, way=way: maker.text() | way(maker) | _extra(maker) | _target(maker),
            )


_FEATURES = {
    "pixel_values": ("image", ("get_image_features",)),
    "pixel_values_videos": ("video", ("get_video_features",)),
    "input_features": ("audio", ("get_audio_features",)),
    "input_values": ("audio", ("get_audio_features",)),
    "audio_values": ("audio", ("get_audio_features",)),
}


def fused(maker: Any, made: dict[str, Any], main: str) -> dict[str, Any]:
    """A text with as many places for the image as the model itself makes features of it."""
    word, functions = _FEATURES[main]
    token = maker.find(f"{word}_token_id", f"{word}_token_index")
    if token is None and word == "image":
        token = (maker.find("vocabulary_map") or {}).get("<image>")
    if token is None:
        raise NotThisWay(f"no {word} token in the configuration")
    counts = features(maker, made, main, functions)
    length = 1 + max(counts) + 1 + 17
    ids = maker.ids(length)
    keep = maker.mask(length)
    start = maker.find(
        "vision_start_token_id",
        f"{word}_start_token_id",
        f"{word}_bos_token_id",
        f"{'boi' if word == 'image' else 'boa'}_token_id",
    )
    end = maker.find(
        "vision_end_token_id",
        f"{word}_end_token_id",
        f"{word}_eos_token_id",
        f"{'eoi' if word == 'image' else 'eoa'}_token_id",
    )
    for row, count in enumerate(counts):
        if isinstance(start, int):
            ids[row, 0] = start
        ids[row, 1 : 1 + count] = token
        if isinstance(end, int):
            ids[row, 1 + count] = end
    padding = maker.find("pad_token_id", default=0)
    padding = padding if isinstance(padding, int) and 0 <= padding < maker.vocabulary else 0
    ids = torch.where(keep.bool(), ids, padding)
    batch = {"input_ids": ids} | made
    if "attention_mask" in maker.names:
        batch["attention_mask"] = keep
        maker.padded["input_ids"] = keep
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in maker.names:
            kind = {"image": 1, "video": 2, "audio": 3}[word] if name == "mm_token_type_ids" else 1
            batch[name] = (ids == token).long() * kind
    return batch | _extra(maker, but=batch) | _target(maker)


def _first(output: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(output, name, None)) is not None), None)


def features(maker: Any, made: dict[str, Any], main: str, functions: tuple[str, ...]) -> list[int]:
    """Places that each sequence's image takes, by the model's own function."""
    found = (getattr(module, name) for module in maker.model.modules() for name in functions if hasattr(module, name))
    function = next(found, None)
    if function is None:
        raise NotThisWay(f"{type(maker.model).__name__} has none of {functions}")
    with torch.no_grad():
        out = function(**made)
    out = out if isinstance(out, (Tensor, list, tuple)) else _first(out, "pooler_output", "last_hidden_state")
    if isinstance(out, tuple) and len(out) and isinstance(out[0], (list, tuple)):
        out = out[0]
    sequences = len(next(iter(made.values()))) if "grid" not in "".join(made) else 8
    sequences = 8 if sequences % 8 == 0 else sequences
    rows = (
        [len(item) if item.ndim == 2 else item.shape[:-1].numel() for item in out]
        if isinstance(out, (list, tuple))
        else None
    )
    if rows is None:
        total = out.shape[:-1].numel()
        return [total // 8] * 8
    if len(rows) == 1:
        return [rows[0] // 8] * 8
    return rows if len(rows) == 8 else [sum(rows) // 8] * 8


# --- images, videos, sounds ---


def _grid_image(maker: Any) -> dict[str, Any]:
    values, grid = maker.patches()
    name = next(name for name in ("image_grid_thw", "grid_thw", "image_grid_hws") if name in maker.names)
    return {"pixel_values": values, name: grid}


def _masked_images(maker: Any) -> dict[str, Any]:
    """Several images a sequence, with the mask of their pixels: Idefics and those after it."""
    images = maker.image()[:, None]
    return {"pixel_values": images, "pixel_attention_mask": torch.ones(8, 1, *images.shape[-2:], dtype=torch.long)}


def _sized_image(maker: Any) -> dict[str, Any]:
    images = maker.image()
    return {"pixel_values": images, "image_sizes": torch.tensor([list(images.shape[-2:])] * 8)}


def _tiled_image(maker: Any) -> dict[str, Any]:
    side = maker.side
    return {
        "pixel_values": maker.image()[:, None].repeat(1, 5, 1, 1, 1),
        "image_sizes": torch.tensor([[2 * side[0], 2 * side[1]]] * 8),
    }


def _flat_patches(maker: Any) -> dict[str, Any]:
    """Flat patches in a batch, with their mask and shapes: SigLIP 2 and those after it."""
    patch = maker.find("patch_size", default=8, inside="vision|")
    made: dict[str, Any] = {"pixel_values": maker.normal(8, 16, 3 * patch * patch)}
    if "pixel_attention_mask" in maker.names:
        made["pixel_attention_mask"] = torch.ones(8, 16, dtype=torch.long)
    if "spatial_shapes" in maker.names:
        made["spatial_shapes"] = torch.tensor([[4, 4]] * 8)
    return made


def _positioned_patches(maker: Any) -> dict[str, Any]:
    patch = maker.find("patch_size", default=8, inside="vision|")
    grid = (
        torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="xy"), -1)
        .reshape(1, 36, 2)
        .repeat(8, 1, 1)
    )
    name = next(name for name in ("image_position_ids", "pixel_position_ids") if name in maker.names)
    return {"pixel_values": torch.rand(8, 36, 3 * patch * patch, generator=maker.generator), name: grid}


def _named(name: str, way: Callable[[Any], Tensor]) -> Callable[[Any], dict[str, Any]]:
    return lambda maker: {name: way(maker)}


_IMAGES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "patches and their grid": _grid_image,
    "patches and their places": _positioned_patches,
    "images": _named("pixel_values", lambda maker: maker.image()),
    "images and their sizes": _sized_image,
    "images with a mask": _masked_images,
    "an image a sequence": _named("pixel_values", lambda maker: maker.image()[:, None]),
    "tiles": _tiled_image,
    "flat patches": _flat_patches,
    "larger images": _named("pixel_values", lambda maker: maker.image((64, 64))),
    "large images": _named("pixel_values", lambda maker: maker.image((128, 128))),
    "videos": _named(
        "pixel_values", lambda maker: maker.image(frames=maker.find("num_frames", "frames_per_clip", default=4))
    ),
    "short videos": _named("pixel_values", lambda maker: maker.image(frames=4)),
    "states of patches": _named(
        "pixel_values", lambda maker: maker.normal(8, 16, maker.find("hidden_size", default=64))
    ),
}


def _grid_video(maker: Any) -> dict[str, Any]:
    values, grid = maker.patches((2, 4, 4))
    return {"pixel_values_videos": values, "video_grid_thw": grid}


_VIDEOS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "patches of videos": _grid_video,
    "videos": _named(
        "pixel_values_videos", lambda maker: maker.image(frames=maker.find("num_frames", "frames_per_clip", default=4))
    ),
    "short videos": _named("pixel_values_videos", lambda maker: maker.image(frames=4)),
}


def _bins(maker: Any) -> int:
    return maker.find(
        "num_mel_bins",
        "n_mels",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "input_dim",
        "mel_bins",
        "feature_size",
        "n_mel_bins",
        "input_feat_size",
        "input_size",
        default=80,
        inside="audio|speech|encoder|",
    )


def _frames(maker: Any) -> int:
    positions = maker.find("max_source_positions", default=None)
    return 2 * positions if isinstance(positions, int) and positions <= 200 else 96


def _sounds(name: str) -> dict[str, Callable[[Any], dict[str, Any]]]:
    mask_names = (
        f"{name}_mask",
        "attention_mask",
        "padding_mask",
        "feature_attention_mask",
        "audio_mel_mask",
        "audio_attention_mask",
    )

    def masked(maker: Any, values: Tensor, length: int, but: tuple[str, ...] = (), pad: bool = True) -> dict[str, Any]:
        mask = next((item for item in mask_names if item in maker.names and item not in but), None)
        if mask is None:
            return {name: values}
        keep = maker.mask(length, length // 10)
        if not pad:
            return {name: values, mask: torch.ones_like(keep)}
        maker.padded[name] = keep
        shape = (
            [8, *([1] * (values.ndim - 2)), length]
            if values.shape[-1] == length
            else [8, length, *([1] * (values.ndim - 2))]
        )
        return {name: values * keep.view(shape), mask: keep}

    def text(maker: Any) -> tuple[str, ...]:
        return ("attention_mask",) if "input_ids" in maker.names else ()

    def wave(maker: Any, pad: bool = True) -> dict[str, Any]:
        return masked(maker, maker.normal(8, 8000), 8000, text(maker), pad)

    def channel(maker: Any, pad: bool = True) -> dict[str, Any]:
        return masked(maker, maker.normal(8, 1, 8000), 8000, text(maker), pad)

    def mel(maker: Any, pad: bool = True) -> dict[str, Any]:
        return masked(maker, maker.normal(8, _bins(maker), _frames(maker)), _frames(maker), text(maker), pad)

    def frames(maker: Any, pad: bool = True) -> dict[str, Any]:
        return masked(maker, maker.normal(8, 96, _bins(maker)), 96, text(maker), pad)

    def spectrogram(maker: Any) -> dict[str, Any]:
        return {name: maker.normal(8, maker.find("max_length", default=64), _bins(maker))}

    def plain(way: Callable[..., dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        return lambda maker: way(maker, pad=False)

    def bare(way: Callable[..., dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        return lambda maker: {name: way(maker, pad=False)[name]}

    found: dict[str, Callable[[Any], dict[str, Any]]] = {}
    shapes = {"waves": wave, "waves with a channel": channel} if name != "input_features" else {}
    shapes |= {"mel bins before frames": mel, "frames before mel bins": frames}
    for word, way in shapes.items():
        found |= {f"padded {word}": way, f"{word} of one length": plain(way), word: bare(way)}
    return found | {"spectrograms": spectrogram}


# --- the rest of a batch ---


def _extra(maker: Any, but: Any = ()) -> dict[str, Any]:
    """Arguments that a forward needs, or that make sense beside the main ones."""
    made: dict[str, Any] = {}
    needed = {name for name, parameter in maker.names.items() if parameter.default is parameter.empty}
    length = maker.length
    if "bbox" in maker.names:
        corners = torch.randint(0, 50, (8, length, 2), generator=maker.generator)
        made["bbox"] = torch.cat(
            [corners, corners + torch.randint(1, 20, (8, length, 2), generator=maker.generator)], -1
        )
    if "decoder_input_ids" not in maker.names and "labels" in needed:
        made["labels"] = maker.ids(length)
    return {name: value for name, value in made.items() if name not in but}


def _target(maker: Any) -> dict[str, Any]:
    if "decoder_input_ids" not in maker.names:
        return {}
    vocabulary = maker.find("tgt_vocab_size", "decoder_vocab_size", default=None)
    vocabulary = vocabulary if isinstance(vocabulary, int) else None
    ids = maker.ids(13, vocabulary)
    if "decoder_attention_mask" not in maker.names:
        return {"decoder_input_ids": ids}
    keep = maker.mask(13)
    padding = maker.find("pad_token_id", default=0)
    padding = padding if isinstance(padding, int) and 0 <= padding < maker.vocabulary else 0
    maker.padded["decoder_input_ids"] = keep
    return {"decoder_input_ids": torch.where(keep.bool(), ids, padding), "decoder_attention_mask": keep}


def _states(maker: Any) -> dict[str, Any]:
    width = maker.find("hidden_size", "d_model", default=64)
    made = {"inputs_embeds": maker.normal(8, 19, width)}
    if "attention_mask" in maker.names:
        keep = maker.mask(19)
        maker.padded["inputs_embeds"] = keep
        made["attention_mask"] = keep
    return made


def _series() -> Iterator[Way]:
    def lagged(maker: Any) -> dict[str, Any]:
        config = maker.config
        past = config.context_length + max(config.lags_sequence)
        made = {
            "past_values": maker.normal(8, past),
            "past_time_features": maker.normal(8, past, config.num_time_features),
            "past_observed_mask": torch.ones(8, past),
            "future_values": maker.normal(8, config.prediction_length),
            "future_time_features": maker.normal(8, config.prediction_length, config.num_time_features),
        }
        return made

    def channels(maker: Any) -> dict[str, Any]:
        config = maker.config
        made = {"past_values": maker.normal(8, config.context_length, config.num_input_channels)}
        return made

    yield "series with lags", lagged
    yield "series of channels", channels
    yield "series", lambda maker: {"past_values": maker.normal(8, 64), "freq": torch.zeros(8, 1, dtype=torch.long)}
    yield "series without frequencies", lambda maker: {"past_values": maker.normal(8, 64)}
    yield (
        "series and their padding",
        lambda maker: {
            "past_values": maker.normal(8, 64),
            "past_values_padding": torch.zeros(8, 64, dtype=torch.long),
        },
    )
    yield "list of series", lambda maker: {"past_values": list(maker.normal(8, 64))}
