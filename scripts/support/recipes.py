"""Inputs of models that no general way fits: model type -> function of an `inputs.Maker`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.ways import fused

Batch = dict[str, Any]


def _decision(maker: Any) -> Batch:
    config = maker.config
    return {
        "states": maker.normal(8, 9, config.state_dim),
        "actions": maker.normal(8, 9, config.act_dim),
        "rewards": maker.normal(8, 9, 1),
        "returns_to_go": maker.normal(8, 9, 1),
        "timesteps": torch.arange(9).repeat(8, 1),
        "attention_mask": torch.ones(8, 9, dtype=torch.long),
    }


def _lxmert(maker: Any) -> Batch:
    config = maker.config
    return maker.text() | {
        "visual_feats": maker.normal(8, 7, config.visual_feat_dim),
        "visual_pos": torch.rand(8, 7, config.visual_pos_dim, generator=maker.generator),
    }


def _visual_bert(maker: Any) -> Batch:
    return maker.text() | {
        "visual_embeds": maker.normal(8, 7, maker.config.visual_embedding_dim),
        "visual_attention_mask": torch.ones(8, 7, dtype=torch.long),
        "visual_token_type_ids": torch.ones(8, 7, dtype=torch.long),
    }


def _states(name: str = "hidden_states", length: int = 19) -> Callable[[Any], Batch]:
    return lambda maker: {name: maker.normal(8, length, maker.find("hidden_size", "d_model", default=64))}


def _pairs(maker: Any) -> Batch:
    """Two images a sequence, to be matched."""
    return {"pixel_values": torch.rand(8, 2, maker.channels, 64, 64, generator=maker.generator)}


def _picture(name: str, side: int = 64) -> Callable[[Any], Batch]:
    return lambda maker: {name: maker.image((side, side))}


def _clap_audio(maker: Any) -> Batch:
    config = next(config for config in _configs(maker) if hasattr(config, "spec_size"))
    return {
        "input_features": maker.normal(8, 1, 100, config.num_mel_bins),
        "is_longer": torch.zeros(8, 1, dtype=torch.bool),
    }


def _clap(maker: Any) -> Batch:
    return maker.text() | _clap_audio(maker)


def _configs(maker: Any) -> list[Any]:
    return [maker.config, *(value for value in vars(maker.config).values() if hasattr(value, "model_type"))]


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


def _target(maker: Any, length: int = 13) -> Batch:
    keep = maker.mask(length)
    maker.padded["decoder_input_ids"] = keep
    return {"decoder_input_ids": maker.ids(length) * keep, "decoder_attention_mask": keep}


def _codebooks(maker: Any) -> Batch:
    """Dia: a text and the codes of several channels of sound."""
    decoder = getattr(maker.config, "decoder_config", maker.config)
    codes = torch.randint(0, min(decoder.vocab_size, 60), (8, 13, decoder.num_channels), generator=maker.generator)
    keep = maker.mask(13)
    text = maker.text()
    maker.padded["decoder_input_ids"] = keep
    return text | {"decoder_input_ids": codes, "decoder_attention_mask": keep}


def _dia_decoder(maker: Any) -> Batch:
    codes = torch.randint(
        0, min(maker.config.vocab_size, 60), (8, 13, maker.config.num_channels), generator=maker.generator
    )
    width = maker.find("cross_hidden_size", default=64)
    return {
        "input_ids": codes,
        "encoder_hidden_states": maker.normal(8, 11, width),
        "position_ids": torch.arange(13)[None].repeat(8, 1),
    }


def _musicgen(maker: Any) -> Batch:
    decoder = maker.config.decoder
    codes = torch.randint(0, min(decoder.vocab_size, 60), (8 * decoder.num_codebooks, 13), generator=maker.generator)
    return maker.text() | {"decoder_input_ids": codes}


def _musicgen_decoder(maker: Any) -> Batch:
    codes = torch.randint(0, 60, (8 * maker.config.num_codebooks, 13), generator=maker.generator)
    return {"input_ids": codes}


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


def _perceiver(maker: Any) -> Batch:
    return {"inputs": maker.normal(8, 19, maker.config.d_model)}


def _rag(maker: Any) -> Batch:
    documents = maker.config.n_docs
    context = torch.randint(3, 200, (8 * documents, 17), generator=maker.generator)
    return {
        "input_ids": maker.ids(11, 200),
        "context_input_ids": context,
        "context_attention_mask": torch.ones_like(context),
        "doc_scores": maker.normal(8, documents),
        "decoder_input_ids": torch.randint(3, 200, (8, 13), generator=maker.generator),
    }


def _segments(maker: Any) -> Batch:
    side = maker.side  # the prompt is put on top of the image
    side = (side[0] // 2, side[1])
    return {
        "pixel_values": maker.image(side),
        "prompt_pixel_values": maker.image(side),
        "prompt_masks": maker.image(side),
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


def _mel(name: str, bins: str | int, shape: str = "frames", length: int = 96) -> Callable[[Any], Batch]:
    def make(maker: Any) -> Batch:
        count = bins if isinstance(bins, int) else getattr(maker.config, bins)
        return {name: maker.normal(8, length, count) if shape == "frames" else maker.normal(8, count, length)}

    return make


def _masked_mel(name: str, mask: str, bins: str | int, padding: bool = False) -> Callable[[Any], Batch]:
    """Frames with their mask, which says what is padding where ``padding`` is true, else what is real."""

    def make(maker: Any) -> Batch:
        count = bins if isinstance(bins, int) else getattr(maker.config, bins)
        keep = maker.mask(96, 9)
        maker.padded[name] = keep
        return {name: maker.normal(8, 96, count) * keep[..., None], mask: ~keep.bool() if padding else keep.bool()}

    return make


def _blt(maker: Any) -> Batch:
    return maker.text() | {"use_cache": False}


def _blip_qformer(maker: Any) -> Batch:
    return {
        "query_embeds": maker.normal(8, 9, maker.config.hidden_size),
        "encoder_hidden_states": maker.normal(8, 17, maker.config.encoder_hidden_size),
    }


def _instruct_qformer(maker: Any) -> Batch:
    text = maker.text()
    return text | {
        "query_embeds": maker.normal(8, 9, maker.config.hidden_size),
        "attention_mask": torch.cat([torch.ones(8, 9, dtype=torch.long), text["attention_mask"]], 1),
        "encoder_hidden_states": maker.normal(8, 17, maker.config.encoder_hidden_size),
    }


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
        prompt = maker.ids(7)
        return {
            "pixel_values": pixels,
            "input_ids": ids * keep,
            "attention_mask": keep,
            "qformer_input_ids": prompt,
            "qformer_attention_mask": torch.ones_like(prompt),
        }

    return make


def _speech_text(maker: Any) -> Batch:
    """SpeechT5 without its pre-nets: states of both sides."""
    return {"input_values": maker.normal(8, 19, 64), "decoder_input_values": maker.normal(8, 12, 64)}


def _pi0(maker: Any) -> Batch:
    text = maker.text(pad=False)
    width = maker.find("hidden_size", default=64, inside="dit")
    return {
        "action_embeds": maker.normal(8, 5, width),
        "pixel_values": maker.image()[:, None],
        "pixel_attention_mask": torch.ones(8, 1, dtype=torch.bool),
    } | text


def _perceiver_resampler(maker: Any) -> Batch:
    return {
        "context": maker.normal(8, 17, maker.config.hidden_size),
        "attention_mask": torch.ones(8, 17, dtype=torch.long),
    }


def _moshi_depth(maker: Any) -> Batch:
    config = maker.config
    length = config.num_codebooks
    return {
        "input_ids": torch.randint(0, 60, (8, length), generator=maker.generator),
        "last_hidden_state": maker.normal(8, 1, config.input_size),
    }


def _glimmer(maker: Any) -> Batch:
    width = maker.config.hidden_size
    targets = len(maker.find("target_layer_ids", default=[0]))
    return {"noise_embeds": maker.normal(8, 6, width), "context_hidden_states": maker.normal(8, 13, width * targets)}


def _spark(maker: Any) -> Batch:
    return {"input_values": maker.normal(8, 4 * 1920)}


def _neucodec(maker: Any) -> Batch:
    return {
        "input_values": maker.normal(8, 1, 16000),
        "input_features": maker.normal(
            8, 50, maker.find("feature_projection_input_dim", default=64, inside="semantic")
        ),
    }


def _codes_text(maker: Any) -> Batch:
    count = maker.find("num_codebooks", default=8)
    return {"input_ids": torch.randint(0, 60, (8, 13, count), generator=maker.generator)}


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


def _kyutai(maker: Any) -> Batch:
    count = maker.config.num_codebooks + 1
    return {"input_ids": torch.randint(3, 60, (8, 13, count), generator=maker.generator)}


def _row_of_mels(maker: Any) -> Batch:
    """The frames of all clips in one row, and how many there are of each: the audio encoders of Qwen."""
    lengths = torch.tensor([96, 80, 64, 96, 80, 64, 96, 80])
    made: Batch = {
        "input_features": maker.normal(maker.config.num_mel_bins, int(lengths.sum())),
        "feature_lens": lengths,
    }
    if "aftercnn_lens" in maker.names:
        made["aftercnn_lens"] = (lengths - 1) // 2 + 1
    return made


def _phi_audio(maker: Any) -> Batch:
    return {"hidden_states": maker.normal(8, 96, maker.config.input_size), "mask": torch.ones(8, 96, dtype=torch.bool)}


def _marks(maker: Any) -> Batch:
    ids = maker.ids()
    marks = torch.zeros_like(ids)
    marks[:, 3::4] = 1
    return {
        "input_ids": ids,
        "marks": marks,
        "num_options": torch.full((8,), 2),
        "question_type_ids": torch.zeros(8, dtype=torch.long),
    }


def _pooled_patches(maker: Any) -> Batch:
    width = maker.find("hidden_size", default=64)
    return {"image_features": maker.normal(8, 16, 2 * width), "pooled_patches_idx": torch.arange(128).view(32, 4)}


def _molmo_vision(maker: Any) -> Batch:
    patch = maker.find("patch_size", "image_patch_size", default=8)
    return {"pixel_values": maker.normal(8, 16, 3 * patch * patch)}


def _with_encoder(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return maker.text() | {
        "encoder_hidden_states": maker.normal(8, 11, width),
        "encoder_attention_mask": torch.ones(8, 11),
    }


def _merged_patches(maker: Any) -> Batch:
    values, grid = maker.patches()
    return {"pixel_values": values, "grid_thw": grid, "merge_sizes": torch.ones(8, dtype=torch.long)}


def _forecast(maker: Any) -> Batch:
    return {
        "past_values": maker.normal(8, 64),
        "past_values_padding": torch.zeros(8, 64, dtype=torch.long),
        "freq": torch.zeros(8, 1, dtype=torch.long),
    }


def _latents(maker: Any) -> Batch:
    return {"latents": maker.normal(8, maker.find("hidden_size", "latent_channels", default=64), 12)}


def _queried(maker: Any) -> Batch:
    width = maker.config.hidden_size
    return {
        "decoder_queries": maker.normal(8, 7, width),
        "backbone_features": [maker.normal(8, width, side, side) for side in (24, 12, 6)],
        "encoder_hidden_states": maker.normal(8, 36, width),
    }


def _chunked_mel(maker: Any) -> Batch:
    bins = maker.config.feature_size
    return {"input_features": maker.normal(8, bins, 96), "chunk_sample_lengths": torch.full((8,), 96 * 160)}


def _embedded_patches(maker: Any) -> Batch:
    return {"inputs_embeds": maker.normal(8, 32, maker.config.hidden_size), "num_patches": 16}


def _framed_text(maker: Any) -> Batch:
    """A text beside the frames of a video: TVP."""
    return maker.text() | {"pixel_values": maker.image((128, 128), frames=maker.config.num_frames)}


def _trimap(maker: Any) -> Batch:
    return {"pixel_values": maker.image((64, 64))}


def _idefics(maker: Any) -> Batch:
    text = maker.text()
    return text | {
        "pixel_values": maker.image()[:, None],
        "image_attention_mask": torch.ones(8, text["input_ids"].shape[1], 1, dtype=torch.long),
    }


def _streamed_speech(maker: Any) -> Batch:
    return {"input_ids": maker.ids(12), "input_features": maker.normal(8, 128, 96)}


def _bins_of_sound(maker: Any) -> Batch:
    return {"audio_input_ids": torch.randint(0, 60, (8, 12, maker.config.num_codebooks), generator=maker.generator)}


def _grown_mel(maker: Any) -> Batch:
    """Frames with their differences, two by two: Granite Speech 5."""
    bins = maker.find("num_mel_bins", default=64, inside="encoder")
    return _masked_mel("input_features", "attention_mask", 4 * bins)(maker)


def _squares(maker: Any) -> Batch:
    patch = maker.find("patch_size", inside="vision")
    frames = maker.find("temporal_patch_size", inside="vision")
    return {"pixel_values": maker.normal(8 * 16, frames, patch, patch, 3)}


def _channel_states(maker: Any) -> Batch:
    return {"hidden_states": maker.normal(8, maker.find("hidden_size", "latent_channels", default=64), 12)}


def _one_channel(maker: Any) -> Batch:
    return {"hidden_states": maker.normal(8, 1, 6400)}


def _embedded_grid(maker: Any) -> Batch:
    return {"patch_embeds": maker.normal(8, maker.config.hidden_size, 4, 4)}


def _in_text(made: Callable[[Any], Batch], main: str = "pixel_values") -> Callable[[Any], Batch]:
    """A text with places for the images that ``made`` gives."""
    return lambda maker: fused(maker, made(maker), main)


def _two_resolutions(maker: Any) -> Batch:
    return {"pixel_values": maker.image(), "high_res_pixel_values": maker.image()}


def _square_patches_of_images(maker: Any) -> Batch:
    made = _square_patches(maker)
    return {"pixel_values": made["pixel_values"], "image_grid_thw": made["grid_thw"]}


def _rows_of_patches(maker: Any) -> Batch:
    patch = maker.find("patch_size", default=8, inside="vision|")
    return {"pixel_values": maker.normal(8 * 16, 3 * patch * patch)}


def _whole_mel(maker: Any) -> Batch:
    return {"input_features": maker.normal(8, 96, 560), "input_features_mask": torch.ones(8, 96, dtype=torch.bool)}


def _merged_images(maker: Any) -> Batch:
    values, grid = maker.patches()
    return {"pixel_values": values, "image_grid_thw": grid, "image_merge_sizes": torch.full((8,), 2)}


RECIPES: dict[str, Callable[[Any], Batch]] = {
    "blip_2_qformer": _blip_qformer,
    "blt": _blt,
    "blt_global_transformer": _states("inputs_embeds"),
    "bridgetower_vision_model": lambda maker: {"image": maker.image()},
    "canine": lambda maker: maker.text(length=60),
    "chameleon_vqgan": _picture("pixel_values"),
    "clap": _clap,
    "clap_audio_model": _clap_audio,
    "decision_transformer": _decision,
    "dia": _codebooks,
    "dia_decoder": _dia_decoder,
    "efficientloftr": _pairs,
    "fastspeech2_conformer_hifigan": _mel("spectrogram", "model_in_dim", length=4),
    "flava_multimodal_model": _states(),
    "florence_vision": _picture("hidden_states"),
    "fun_asr_nano_encoder": _masked_mel("input_features", "input_features_mask", 560),
    "gemma3n_audio": _masked_mel("audio_mel", "audio_mel_mask", "input_feat_size", padding=True),
    "gemma4_audio": _masked_mel("input_features", "attention_mask", 128),
    "funnel": lambda maker: maker.text(length=60),
    "granite_speech_encoder": _mel("hidden_states", "input_dim"),
    "granite_speech_plus_encoder": _mel("hidden_states", "input_dim"),
    "idefics2_perceiver": _perceiver_resampler,
    "instructblip": _fused_instruct("image"),
    "instructblip_qformer": _instruct_qformer,
    "instructblipvideo": _fused_instruct("video"),
    "instructblipvideo_qformer": _instruct_qformer,
    "kimi_k25_vision": _square_patches,
    "lightglue": _pairs,
    "lxmert": _lxmert,
    "minicpm_ocr_vision": _sized_patches,
    "minicpmv4_6_vision": _sized_patches,
    "minicpmv4_7_vision": _sized_patches,
    "mllama": _mllama,
    "mllama_vision_model": _tiled_vision,
    "moshi_depth": _moshi_depth,
    "muse_glimmer_assistant": _glimmer,
    "muse_spark_audio": _spark,
    "musicgen": _musicgen,
    "musicgen_decoder": _musicgen_decoder,
    "musicgen_melody": _musicgen,
    "musicgen_melody_decoder": _musicgen_decoder,
    "neucodec": _neucodec,
    "omdet-turbo": _omdet,
    "oneformer": _oneformer,
    "paddleocr_vl_vision": _paddle,
    "perceiver": _perceiver,
    "pi0": _pi0,
    "pix2struct": _pix2struct,
    "pix2struct_vision_model": _flattened,
    "qwen2_5_omni_bigvgan": _mel("mel_spectrogram", "mel_dim", "bins", 24),
    "rag": _rag,
    "sam3_detr_decoder": _sam_detr_decoder,
    "sam3_detr_encoder": _sam_detr_encoder,
    "sam3_lite_text_detr_decoder": _sam_detr_decoder,
    "sam3_lite_text_detr_encoder": _sam_detr_encoder,
    "seggpt": _segments,
    "speecht5": _speech_text,
    "jev": _marks,
    "kosmos-2": _kosmos,
    "kosmos-2.5": _kosmos_patches,
    "kosmos_2_5_vision_model": _flattened,
    "kyutai_speech_to_text": _kyutai,
    "phi4_multimodal_audio": _phi_audio,
    "qwen2_5_omni_audio_encoder": _row_of_mels,
    "qwen3_omni_moe_audio_encoder": _row_of_mels,
    "qwen3_omni_moe_talker_code_predictor": _states("inputs_embeds", 2),
    "qwen3_omni_moe_talker_text": _states("inputs_embeds"),
    "molmo2_adapter": _pooled_patches,
    "molmo2_vision": _molmo_vision,
    "qwen3_asr_encoder": _masked_mel("input_features", "input_features_mask", "num_mel_bins"),
    "t5gemma2_decoder": _with_encoder,
    "video_llama_3_vision": _merged_patches,
    "timesfm": _forecast,
    "mimi_decoder": _latents,
    "pocket_tts_audio_tokenizer_decoder": _latents,
    "vibevoice_acoustic_tokenizer_decoder": _channel_states,
    "sam3_mask_decoder": _queried,
    "sam3_lite_text_mask_decoder": _queried,
    "speecht5_hifigan": _mel("spectrogram", "model_in_dim", length=4),
    "deepseek_ocr2_encoder": _embedded_patches,
    "dots3_note_audio_encoder": _chunked_mel,
    "unlimited_ocr_vision_encoder": _embedded_grid,
    "tvp": _framed_text,
    "vitmatte": _trimap,
    "idefics": _idefics,
    "voxtral_realtime": _streamed_speech,
    "inkling_audio": _bins_of_sound,
    "granite_speech5_encoder": _grown_mel,
    "granite_speech5_ctc": _grown_mel,
    "inkling_vision": _squares,
    "vibevoice_acoustic_tokenizer_encoder": _one_channel,
    "xcodec2": _neucodec,
    "deepseek_vl_hybrid": _in_text(_two_resolutions),
    "kimi_k25": _in_text(_square_patches_of_images),
    "paddleocr_vl": _in_text(_square_patches_of_images),
    "neomme": _in_text(_rows_of_patches),
    "video_llama_3": _in_text(_merged_images),
    "inkling_mm_model": _in_text(_squares),
    "fun_asr_nano": _in_text(_whole_mel, "input_features"),
    "superglue": _pairs,
    "visual_bert": _visual_bert,
}
