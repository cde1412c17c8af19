"""Images and sounds in the stream of a text: as many places as the model itself makes features of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from support.batches import NotThisWay, extra, target

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
    return batch | extra(maker, but=batch) | target(maker)


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
