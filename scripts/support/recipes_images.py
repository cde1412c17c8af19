"""Inputs of models that no general way fits: images and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from support.fused import fused
from support.recipes_both import BOTH

Batch = dict[str, Any]


def _pairs(maker: Any) -> Batch:
    """Two images a sequence, to be matched."""
    return {"pixel_values": torch.rand(8, 2, maker.channels, 64, 64, generator=maker.generator)}


def _picture(name: str, side: int = 64) -> Callable[[Any], Batch]:
    return lambda maker: {name: maker.image((side, side))}


def _segments(maker: Any) -> Batch:
    side = maker.side  # the prompt is put on top of the image
    side = (side[0] // 2, side[1])
    return {
        "pixel_values": maker.image(side),
        "prompt_pixel_values": maker.image(side),
        "prompt_masks": maker.image(side),
    }


def _sized_patches(maker: Any) -> Batch:
    """MiniCPM: the patches of all images in one row, and how many there are of each."""
    patch = maker.find("patch_size", default=8)
    return {
        "pixel_values": maker.normal(1, 3, patch, 8 * 16 * patch),
        "target_sizes": torch.tensor([[4, 4]] * 8, dtype=torch.int32),
    }


def _square_patches(maker: Any) -> Batch:
    patch = maker.find("patch_size", default=8)
    return {"pixel_values": maker.normal(8 * 16, 3, patch, patch), "grid_thw": torch.tensor([[1, 4, 4]] * 8)}


def _paddle(maker: Any) -> Batch:
    patch = maker.find("patch_size", default=8)
    return {"pixel_values": maker.normal(1, 8 * 16, 3, patch, patch), "grid_thw": torch.tensor([[1, 4, 4]] * 8)}


def _perceiver_resampler(maker: Any) -> Batch:
    return {
        "context": maker.normal(8, 17, maker.config.hidden_size),
        "attention_mask": torch.ones(8, 17, dtype=torch.long),
    }


def _sam_detr_encoder(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return {
        "vision_features": [maker.normal(8, width, 6, 6)],
        "text_features": maker.normal(8, 9, width),
        "vision_pos_embeds": [maker.normal(8, width, 6, 6)],
    }


def _sam_detr_decoder(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return {
        "vision_features": maker.normal(8, 36, width),
        "text_features": maker.normal(8, 9, width),
        "vision_pos_encoding": maker.normal(8, 36, width),
        "spatial_shapes": torch.tensor([[6, 6]]),
    }


def _pooled_patches(maker: Any) -> Batch:
    width = maker.find("hidden_size", default=64)
    return {"image_features": maker.normal(8, 16, 2 * width), "pooled_patches_idx": torch.arange(128).view(32, 4)}


def _molmo_vision(maker: Any) -> Batch:
    patch = maker.find("patch_size", "image_patch_size", default=8)
    return {"pixel_values": maker.normal(8, 16, 3 * patch * patch)}


def _merged_patches(maker: Any) -> Batch:
    values, grid = maker.patches()
    return {"pixel_values": values, "grid_thw": grid, "merge_sizes": torch.ones(8, dtype=torch.long)}


def _queried(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return {
        "decoder_queries": maker.normal(8, 14, width),
        "backbone_features": [maker.normal(8, width, side, side) for side in (24, 12, 6)],
        "encoder_hidden_states": maker.normal(8, 36, width),
    }


def _embedded_patches(maker: Any) -> Batch:
    return {"inputs_embeds": maker.normal(8, 32, maker.config.hidden_size), "num_patches": 16}


def _trimap(maker: Any) -> Batch:
    return {"pixel_values": maker.image((64, 64))}


def _squares(maker: Any) -> Batch:
    patch = maker.find("patch_size", inside="vision")
    frames = maker.find("temporal_patch_size", inside="vision")
    return {"pixel_values": maker.normal(8 * 16, frames, patch, patch, 3)}


def _merged_squares(maker: Any) -> Batch:
    """A square of patches for each place in a text."""
    side = maker.find("patch_size", inside="vision") * maker.find("spatial_merge_size", inside="vision")
    return {"pixel_values": maker.normal(8 * 4, side, side, 3), "image_grid_thw": torch.tensor([[1, 2, 2]] * 8)}


def _embedded_grid(maker: Any) -> Batch:
    return {"patch_embeds": maker.normal(8, maker.config.hidden_size, 4, 4)}


def _two_resolutions(maker: Any) -> Batch:
    return {"pixel_values": maker.image(), "high_res_pixel_values": maker.image()}


def _square_patches_of_images(maker: Any) -> Batch:
    made = _square_patches(maker)
    return {"pixel_values": made["pixel_values"], "image_grid_thw": made["grid_thw"]}


def _rows_of_patches(maker: Any) -> Batch:
    patch = maker.find("patch_size", default=8, inside="vision|")
    return {"pixel_values": maker.normal(8 * 16, 3 * patch * patch)}


def _pooled_crops(maker: Any) -> Batch:
    """Molmo 2: a crop of the whole image for each text, and which four patches make a place in it."""
    made = _molmo_vision(maker)
    corners = torch.tensor([0, 2, 8, 10])[:, None] + torch.tensor([0, 1, 4, 5])
    pooling = (corners + 16 * torch.arange(8)[:, None, None]).reshape(32, 4)
    grids = torch.tensor([[2, 2, 0, 0]] * 8)
    return made | {"image_token_pooling": pooling, "image_grids": grids}


def _merged_images(maker: Any) -> Batch:
    values, grid = maker.patches()
    return {"pixel_values": values, "image_grid_thw": grid, "image_merge_sizes": torch.full((8,), 2)}


def _in_text(made: Callable[[Any], Batch], main: str = "pixel_values") -> Callable[[Any], Batch]:
    """A text with places for the images that ``made`` gives."""
    return lambda maker: fused(maker, made(maker), main)


IMAGES: dict[str, Callable[[Any], Batch]] = {
    "bridgetower_vision_model": lambda maker: {"image": maker.image()},
    "chameleon_vqgan": _picture("pixel_values"),
    "deepseek_ocr2_encoder": _embedded_patches,
    "deepseek_vl_hybrid": _in_text(_two_resolutions),
    "efficientloftr": _pairs,
    "florence_vision": _picture("hidden_states"),
    "idefics2_perceiver": _perceiver_resampler,
    "inkling2_vision": _merged_squares,
    "inkling_mm_model": _in_text(_squares),
    "inkling_vision": _squares,
    "kimi_k25": _in_text(_square_patches_of_images),
    "kimi_k25_vision": _square_patches,
    "lightglue": _pairs,
    "minicpm_ocr_vision": _sized_patches,
    "minicpmv4_6_vision": _sized_patches,
    "minicpmv4_7_vision": _sized_patches,
    "molmo2": _in_text(_pooled_crops),
    "molmo2_adapter": _pooled_patches,
    "molmo2_vision": _molmo_vision,
    "neomme": _in_text(_rows_of_patches),
    "paddleocr_vl": _in_text(_square_patches_of_images),
    "paddleocr_vl_vision": _paddle,
    "sam3_detr_decoder": _sam_detr_decoder,
    "sam3_detr_encoder": _sam_detr_encoder,
    "sam3_lite_text_detr_decoder": _sam_detr_decoder,
    "sam3_lite_text_detr_encoder": _sam_detr_encoder,
    "sam3_lite_text_mask_decoder": _queried,
    "sam3_mask_decoder": _queried,
    "seggpt": _segments,
    "superglue": _pairs,
    "unlimited_ocr_vision_encoder": _embedded_grid,
    "video_llama_3": _in_text(_merged_images),
    "video_llama_3_vision": _merged_patches,
    "vitmatte": _trimap,
} | BOTH
