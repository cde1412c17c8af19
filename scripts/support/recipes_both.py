"""Inputs of models that no general way fits: texts beside images and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Batch = dict[str, Any]


def _lxmert(maker: Any) -> Batch:
    config = maker.config
    return maker.text() | {
        "visual_feats": maker.normal(8, 16, config.visual_feat_dim),
        "visual_pos": torch.rand(8, 16, config.visual_pos_dim, generator=maker.generator),
    }


def _visual_bert(maker: Any) -> Batch:
    return maker.text() | {
        "visual_embeds": maker.normal(8, 16, maker.config.visual_embedding_dim),
        "visual_attention_mask": torch.ones(8, 16, dtype=torch.long),
        "visual_token_type_ids": torch.ones(8, 16, dtype=torch.long),
    }


def _flattened(maker: Any) -> Batch:
    """Pix2Struct's patches: their row, their column, then their pixels; zeros are padding."""
    patch = maker.find("patch_size", default=8)
    rows, columns = torch.meshgrid(torch.arange(1, 5), torch.arange(1, 6), indexing="ij")
    places = torch.stack([rows, columns], -1).reshape(1, 20, 2).repeat(8, 1, 1).float()
    keep = maker.mask(20)
    patches = torch.cat([places, maker.normal(8, 20, 3 * patch * patch)], -1) * keep[..., None]
    maker.padded["flattened_patches"] = keep
    return {"flattened_patches": patches, "attention_mask": keep}


def _pix2struct(maker: Any) -> Batch:
    return _flattened(maker) | _target(maker)


def _omdet(maker: Any) -> Batch:
    words = torch.randint(3, 200, (16, 6), generator=maker.generator)
    tasks = torch.randint(3, 200, (8, 9), generator=maker.generator)
    return {
        "pixel_values": maker.image((64, 64)),
        "classes_input_ids": words,
        "classes_attention_mask": torch.ones_like(words),
        "tasks_input_ids": tasks,
        "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.tensor([2] * 8),
    }


def _oneformer(maker: Any) -> Batch:
    length = maker.find("task_seq_len", default=77)
    return {
        "pixel_values": maker.image((64, 64)),
        "task_inputs": torch.randint(3, 200, (8, length), generator=maker.generator),
    }


def _tiled_vision(maker: Any) -> Batch:
    side = maker.side
    return {
        "pixel_values": maker.normal(8, 1, 4, 3, *side),
        "aspect_ratio_ids": torch.ones(8, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(8, 1, 4, dtype=torch.long),
    }


def _mllama(maker: Any) -> Batch:
    text = maker.text()
    return text | _tiled_vision(maker) | {"cross_attention_mask": torch.ones(8, text["input_ids"].shape[1], 1, 4)}


def _fused_instruct(word: str) -> Callable[[Any], Batch]:
    def make(maker: Any) -> Batch:
        count = maker.config.num_query_tokens
        token = getattr(maker.config, f"{word}_token_index")
        frames = 4 if word == "video" else 1
        ids = maker.ids(count * frames + 17)
        ids[:, : count * frames] = token
        keep = maker.mask(ids.shape[1])
        maker.padded["input_ids"] = keep
        pixels = maker.image(frames=4 if word == "video" else None)
        prompt = maker.ids(14)
        return {
            "pixel_values": pixels,
            "input_ids": ids * keep,
            "attention_mask": keep,
            "qformer_input_ids": prompt,
            "qformer_attention_mask": torch.ones_like(prompt),
        }

    return make


def _pi0(maker: Any) -> Batch:
    text = maker.text(pad=False)
    width = maker.find("hidden_size", default=64, inside="dit")
    return {
        "action_embeds": maker.normal(8, 5, width),
        "pixel_values": maker.image()[:, None],
        "pixel_attention_mask": torch.ones(8, 1, dtype=torch.bool),
    } | text


def _kosmos(maker: Any) -> Batch:
    count = maker.config.latent_query_num
    ids = maker.ids(count + 17)
    keep = maker.mask(count + 17)
    maker.padded["input_ids"] = keep
    places = torch.zeros_like(ids)
    places[:, 1 : 1 + count] = 1
    return {
        "pixel_values": maker.image(),
        "input_ids": torch.where(keep.bool(), ids, 1),
        "attention_mask": keep,
        "image_embeds_position_mask": places,
    }


def _kosmos_patches(maker: Any) -> Batch:
    made = _kosmos(maker)
    del made["pixel_values"]
    patches = _flattened(maker)["flattened_patches"]
    maker.padded.pop("flattened_patches")
    return made | {"flattened_patches": patches, "width": torch.full((8,), 5.0), "height": torch.full((8,), 4.0)}


def _framed_text(maker: Any) -> Batch:
    """A text beside the frames of a video, one video a batch: more of them TVP does not take."""
    text, frames = maker.ids(60)[:1], maker.image(2 * (maker.config.max_img_size,), frames=maker.config.num_frames)[:1]
    return {"input_ids": text, "attention_mask": torch.ones_like(text), "pixel_values": frames}


def _idefics(maker: Any) -> Batch:
    text = maker.text()
    return text | {
        "pixel_values": maker.image()[:, None],
        "image_attention_mask": torch.ones(8, text["input_ids"].shape[1], 1, dtype=torch.long),
    }


def _target(maker: Any, length: int = 13) -> Batch:
    keep = maker.mask(length)
    maker.padded["decoder_input_ids"] = keep
    return {"decoder_input_ids": maker.ids(length) * keep, "decoder_attention_mask": keep}


BOTH: dict[str, Callable[[Any], Batch]] = {
    "idefics": _idefics,
    "instructblip": _fused_instruct("image"),
    "instructblipvideo": _fused_instruct("video"),
    "kosmos-2": _kosmos,
    "kosmos-2.5": _kosmos_patches,
    "kosmos_2_5_vision_model": _flattened,
    "lxmert": _lxmert,
    "mllama": _mllama,
    "mllama_vision_model": _tiled_vision,
    "omdet-turbo": _omdet,
    "oneformer": _oneformer,
    "pi0": _pi0,
    "pix2struct": _pix2struct,
    "pix2struct_vision_model": _flattened,
    "tvp": _framed_text,
    "visual_bert": _visual_bert,
}
