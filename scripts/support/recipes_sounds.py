"""Inputs of models that no general way fits: sounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from support.fused import fused

Batch = dict[str, Any]


def _clap_audio(maker: Any) -> Batch:
    config = next(config for config in _configs(maker) if hasattr(config, "spec_size"))
    return {
        "input_features": maker.normal(8, 1, 100, config.num_mel_bins),
        "is_longer": torch.zeros(8, 1, dtype=torch.bool),
    }


def _clap(maker: Any) -> Batch:
    return maker.text() | _clap_audio(maker)


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


def _whole_chunks(maker: Any) -> Batch:
    """Mel bins before frames, whole chunks of them, the last ones padding."""
    length = 4 * maker.config.n_window
    keep = maker.mask(length, 9)
    maker.padded["input_features"] = keep
    bins = maker.normal(8, maker.config.num_mel_bins, length)
    return {"input_features": bins * keep[:, None], "input_features_mask": keep}


def _clvp(maker: Any) -> Batch:
    """Texts of one length: what of a text is padding does not show in the sounds that the model makes of it."""
    return maker.text(pad=False) | _mel("input_features", 64, "bins")(maker)


def _denoised(maker: Any) -> Batch:
    """A spectrogram on its way from noise, what is spoken, and by whom: a spectrogram and an embedding of the speaker."""
    config = maker.config
    codes = 12
    frames = codes * config.repeats
    return {
        "hidden_states": maker.normal(8, frames, config.mel_dim),
        "condition_vector": maker.normal(8, 30, config.mel_dim),
        "speaker_embedding": maker.normal(8, 1, config.enc_emb_dim).repeat(1, frames, 1),
        "quantized_code": torch.randint(0, config.num_embeds - 1, (8, codes), generator=maker.generator),
        "time_step": torch.tensor(0.4),
    }


def _spoken_codes(maker: Any) -> Batch:
    config = maker.config.dit_config
    return {
        "code": torch.randint(0, config.num_embeds - 1, (8, 12), generator=maker.generator),
        "conditioning": maker.normal(8, config.enc_emb_dim),
        "reference_mel": maker.normal(8, 30, config.mel_dim),
        "num_steps": 2,
    }


def _spoken_text(maker: Any) -> Batch:
    """A text with how long each of its sounds is, how high, how loud, and the spectrogram of all."""
    config = getattr(maker.config, "model_config", maker.config)
    length = 19
    sounds = torch.randint(1, 4, (8, length), generator=maker.generator)
    sounds[:, -1] += 60 - sounds.sum(1)
    return {
        "input_ids": maker.ids(length),
        "attention_mask": torch.ones(8, length, dtype=torch.long),
        "spectrogram_labels": maker.normal(8, 60, config.num_mel_bins),
        "duration_labels": sounds,
        "pitch_labels": maker.normal(8, length, 1),
        "energy_labels": maker.normal(8, length, 1),
    }


def _speech_text(maker: Any) -> Batch:
    """SpeechT5 without its pre-nets: states of both sides."""
    return {"input_values": maker.normal(8, 19, 64), "decoder_input_values": maker.normal(8, 12, 64)}


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
    return {"input_values": maker.normal(8, 12 * 1920)}


def _neucodec(maker: Any) -> Batch:
    return {
        "input_values": maker.normal(8, 1, 4800),
        "input_features": maker.normal(
            8, 15, maker.find("feature_projection_input_dim", default=64, inside="semantic")
        ),
    }


def _codes_text(maker: Any) -> Batch:
    count = maker.find("num_codebooks", default=8)
    return {"input_ids": torch.randint(0, 60, (8, 13, count), generator=maker.generator)}


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


def _latents(maker: Any) -> Batch:
    return {"latents": maker.normal(8, maker.find("hidden_size", "latent_channels", default=64), 12)}


def _chunked_mel(maker: Any) -> Batch:
    bins = maker.config.feature_size
    return {"input_features": maker.normal(8, bins, 96), "chunk_sample_lengths": torch.full((8,), 96 * 160)}


def _streamed_speech(maker: Any) -> Batch:
    return {"input_ids": maker.ids(12), "input_features": maker.normal(8, 128, 96)}


def _bins_of_sound(maker: Any) -> Batch:
    return {"audio_input_ids": torch.randint(0, 60, (8, 12, maker.config.num_codebooks), generator=maker.generator)}


def _grown_mel(maker: Any) -> Batch:
    """Frames with their differences, two by two: Granite Speech 5."""
    bins = maker.find("num_mel_bins", default=64, inside="encoder")
    return _masked_mel("input_features", "attention_mask", 4 * bins)(maker)


def _channel_states(maker: Any) -> Batch:
    return {"hidden_states": maker.normal(8, maker.find("hidden_size", "latent_channels", default=64), 12)}


def _one_channel(maker: Any) -> Batch:
    return {"hidden_states": maker.normal(8, 1, 6400)}


def _whole_mel(maker: Any) -> Batch:
    return {"input_features": maker.normal(8, 96, 560), "input_features_mask": torch.ones(8, 96, dtype=torch.bool)}


def _configs(maker: Any) -> list[Any]:
    return [maker.config, *(value for value in vars(maker.config).values() if hasattr(value, "model_type"))]


def _in_text(made: Callable[[Any], Batch], main: str = "pixel_values") -> Callable[[Any], Batch]:
    """A text with places for the images that ``made`` gives."""
    return lambda maker: fused(maker, made(maker), main)


SOUNDS: dict[str, Callable[[Any], Batch]] = {
    "clap": _clap,
    "clap_audio_model": _clap_audio,
    "clvp": _clvp,
    "dia": _codebooks,
    "dia_decoder": _dia_decoder,
    "dots3_note_audio_encoder": _chunked_mel,
    "fastspeech2_conformer": _spoken_text,
    "fastspeech2_conformer_with_hifigan": _spoken_text,
    "fastspeech2_conformer_hifigan": _mel("spectrogram", "model_in_dim", length=4),
    "fun_asr_nano": _in_text(_whole_mel, "input_features"),
    "fun_asr_nano_encoder": _masked_mel("input_features", "input_features_mask", 560),
    "gemma3n_audio": _masked_mel("audio_mel", "audio_mel_mask", "input_feat_size", padding=True),
    "gemma4_audio": _masked_mel("input_features", "attention_mask", 128),
    "granite_speech5_ctc": _grown_mel,
    "granite_speech5_encoder": _grown_mel,
    "granite_speech_encoder": _mel("hidden_states", "input_dim"),
    "granite_speech_plus_encoder": _mel("hidden_states", "input_dim"),
    "inkling_audio": _bins_of_sound,
    "kyutai_speech_to_text": _kyutai,
    "mimi_decoder": _latents,
    "moshi_depth": _moshi_depth,
    "muse_glimmer_assistant": _glimmer,
    "muse_spark_audio": _spark,
    "musicgen": _musicgen,
    "musicgen_decoder": _musicgen_decoder,
    "musicgen_melody": _musicgen,
    "musicgen_melody_decoder": _musicgen_decoder,
    "neucodec": _neucodec,
    "phi4_multimodal_audio": _phi_audio,
    "pocket_tts_audio_tokenizer_decoder": _latents,
    "qwen2_5_omni_audio_encoder": _row_of_mels,
    "qwen2_5_omni_bigvgan": _mel("mel_spectrogram", "mel_dim", "bins", 24),
    "qwen2_5_omni_dit": _denoised,
    "qwen2_5_omni_token2wav": _spoken_codes,
    "qwen3_asr_encoder": _whole_chunks,
    "qwen3_omni_moe_audio_encoder": _row_of_mels,
    "speecht5": _speech_text,
    "speecht5_hifigan": _mel("spectrogram", "model_in_dim", length=4),
    "vibevoice_acoustic_tokenizer_decoder": _channel_states,
    "vibevoice_acoustic_tokenizer_encoder": _one_channel,
    "voxtral_realtime": _streamed_speech,
    "voxtral_realtime_encoder": _mel("input_features", "num_mel_bins", "bins"),
    "xcodec2": _neucodec,
}
