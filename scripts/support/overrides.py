"""Values of tiny configurations that no rule of `tiny` finds: model type -> field -> value.

A value that can be called is called when the configuration is built. A mapping for a configuration inside is merged into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.overrides_images import IMAGES

_SERIES = {
    "prediction_length": 4,
    "context_length": 12,
    "lags_sequence": [1, 2, 3],
    "num_time_features": 2,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
}
_MOE = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}


def _inner(model_type: str) -> Callable[[], Any]:
    """A tiny configuration where the default one has none."""

    def make() -> Any:
        from support.tiny import tiny_config

        return tiny_config(model_type)

    return make


_IMAGES = {
    "vocabulary_map": {"<image>": 300, "<|extra_200|>": 301}
    | {f"IMGIMG{''.join(chr(65 + int(digit)) for digit in str(i))}Z": 200 + i for i in range(64)}
}
_EMU_IMAGES = {
    "vocabulary_map": {"<image>": 300, "<|extra_200|>": 301} | {f"<|visual token {i:06d}|>": 200 + i for i in range(64)}
}
_CODEC = {"quantization_dim": 128, "encoder_hidden_size": 4, "initializer_range": 0.1}

OVERRIDES: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES,
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 319},
    "beam": {"rope_parameters": None, "n_group": 1, "topk_group": 1},
    "blt_local_encoder": {"num_hidden_layers": 3},
    "chameleon": _IMAGES,
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        }
    },
    "clvp": {"speech_config": {"vocab_size": 320}},
    "clvp_decoder": {"num_attention_heads": 2},
    "clvp_encoder": {"num_attention_heads": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "deepseek_ocr2_text": _MOE,
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "global_head_dim": 32},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "dots1": _MOE,
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "feature_size": 64, "downsample_hidden_size": 32},
    "emu3": _EMU_IMAGES,
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        "moe_intermediate_size": [32, 16],
    },
    "esmfold2": {"atom_encoder": {"output_dim": 384}, "num_loops": 1, "msa_encoder": {"num_hidden_layers": 2}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 3,
            "num_kv_shared_layers": 3,
        },
        "backbone_hidden_size": 64,
    },
    "gemma4_text": {"global_head_dim": 32},
    "glm5_next_text": {"num_key_value_heads": 4, "index_kpool": 2},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "spatial_target_layers": [2],
        "downsample_rate": "1/2",
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "informer": _SERIES,
    "instructblip": {"image_token_index": 319},
    "instructblipvideo": {"video_token_index": 319},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lilt": {"hidden_size": 48},
    "mistral4": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "molmo2": {"adapter_config": {"vision_feature_layer": [2, 1]}},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "gemma4_unified_assistant": {
        # With all layers shared, as it stands in the checkpoints, this transformers builds none.
        "text_config": {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
        "backbone_hidden_size": 64,
    },
    "neucodec": _CODEC,
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "pe_audio_encoder": {"dac_config": {"downsampling_ratios": [2, 4, 5, 8], "encoder_hidden_size": 8}},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "qwen2_5_omni_bigvgan": {"upsample_initial_channel": 64},
    "qwen2_5_omni_dit": {"look_ahead_layers": [1], "look_backward_layers": [0, 2]},
    "qwen3_omni_moe_talker": {"spatial_merge_size": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False, "hash_seed": 0, "num_buckets": 4},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "time_series_transformer": _SERIES,
    "phi4_multimodal_audio": {
        "nemo_conv_channels": 64,
        "ext_pw_out_channel": 64,
        "depthwise_separable_out_channel": 64,
    },
    "paddleocr_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    },
    "clap_audio_model": {"patch_embeds_hidden_size": 8},
    "fastspeech2_conformer_hifigan": {"model_in_dim": 80, "upsample_initial_channel": 32},
    "audio-spectrogram-transformer": {"max_length": 64},
    "bark": {
        "semantic_config": {"block_size": 128},
        "coarse_acoustics_config": {"block_size": 128},
        "fine_acoustics_config": {"block_size": 128},
    },
    "granite_speech5_encoder": {"num_mel_bins": 64},
    "kosmos-2": {"latent_query_num": 8},
    "kosmos-2.5": {"latent_query_num": 8},
    "step3p5": {"sliding_window": 8},
    "xcodec2": _CODEC,
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0},
    "align": {"projection_dim": 320},
    "vits": {"upsample_initial_channel": 32, "upsample_rates": [4, 4, 2], "upsample_kernel_sizes": [8, 8, 4]},
    "qwen3_asr_encoder": {"n_window": 50},
    "shieldgemma2": {"yes_token_index": 20, "no_token_index": 21},
    "aria": {"projector_patch_to_query_dict": {16: 8, 64: 8}},
    "gemma4": {"vision_config": _inner("gemma4_vision")},
    "embedding_gemma2": {"vision_config": _inner("gemma4_vision")},
    "granite_speech": {"window_size": 15},
    "llava_next": {"image_grid_pinpoints": [[64, 64]]},
    "llava_next_video": {"image_grid_pinpoints": [[64, 64]]},
    "llava_onevision": {"image_grid_pinpoints": [[64, 64]]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 310},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 310},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
} | IMAGES
