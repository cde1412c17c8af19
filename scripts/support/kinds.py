"""Images, videos and sounds in all the shapes that models take them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


IMAGES: dict[str, Callable[[Any], dict[str, Any]]] = {
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


VIDEOS: dict[str, Callable[[Any], dict[str, Any]]] = {
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


def sounds_as(name: str) -> dict[str, Callable[[Any], dict[str, Any]]]:
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
