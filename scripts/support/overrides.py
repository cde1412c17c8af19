"""Values of tiny configurations that no rule of `tiny` finds: model type -> field -> value.

A value that can be called is called when the configuration is built. A mapping for a configuration inside is merged into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import HGNetV2Config, PPLCNetV3Config, ResNetConfig, SwinConfig


def _resnet() -> ResNetConfig:
    # In place of the backbone of timm, a package of its own.
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )


def _resnet_last() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[4]
    )


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_indices=[2, 3, 4],
    )


def _hgnet() -> HGNetV2Config:
    return HGNetV2Config(
        stem_channels=[3, 16, 24],
        stage_in_channels=[24, 32, 64, 96],
        stage_mid_channels=[16, 16, 32, 32],
        stage_out_channels=[32, 64, 96, 128],
        hidden_sizes=[32, 64, 96, 128],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _lcnet() -> PPLCNetV3Config:
    return PPLCNetV3Config(scale=0.25, out_features=["stage2", "stage3", "stage4", "stage5"])


_DETR = {"use_timm_backbone": False, "backbone": None, "backbone_config": _resnet_last}
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
_KEYPOINTS = {"encoder_hidden_sizes": [16, 16, 32, 32], "max_keypoints": 32}
_INTRACLASS = {
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        "vertical_long_to_small_conv_longratio": [[7, 1], [1, 1], [3, 0]],
        "vertical_long_to_small_conv_midratio": [[5, 1], [1, 1], [2, 0]],
        "vertical_long_to_small_conv_shortratio": [[3, 1], [1, 1], [1, 0]],
        "horizontal_small_to_long_conv_longratio": [[1, 7], [1, 1], [0, 3]],
        "horizontal_small_to_long_conv_midratio": [[1, 5], [1, 1], [0, 2]],
        "horizontal_small_to_long_conv_shortratio": [[1, 3], [1, 1], [0, 1]],
        "symmetric_conv_long_longratio": [[7, 7], [1, 1], [3, 3]],
        "symmetric_conv_long_midratio": [[5, 5], [1, 1], [2, 2]],
        "symmetric_conv_long_shortratio": [[3, 3], [1, 1], [1, 1]],
    }
}
_CODEC = {"quantization_dim": 128, "encoder_hidden_size": 4, "initializer_range": 0.1}
_FORMULA = {
    "post_conv_in_channels": 64,
    "post_conv_mid_channels": 64,
    "post_conv_out_channels": 64,
    "decoder_hidden_size": 64,
}
#: Another width than that of its text tower: a tuple of states can then be told from that of another stream.
_GROUNDING = {"d_model": 32}
_DETECTOR = {"decoder_in_channels": [64, 64, 64]}
_SMALL_NET = {"hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.25}

OVERRIDES: dict[str, dict[str, Any]] = {
    "align_vision_model": {"width_coefficient": 1.0, "depth_coefficient": 0.25, "hidden_dim": 1280},
    "autoformer": _SERIES,
    "grounding-dino": _GROUNDING,
    "mm-grounding-dino": _GROUNDING,
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 319},
    "beam": {"rope_parameters": None, "n_group": 1, "topk_group": 1},
    "blt_local_encoder": {"num_hidden_layers": 3},
    "bit": {"num_groups": 4},
    "chameleon": _IMAGES,
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        }
    },
    "conditional_detr": _DETR,
    "chmv2": {"backbone_config": {"return_class_token": True}},
    "clvp": {"speech_config": {"vocab_size": 320}},
    "clvp_decoder": {"num_attention_heads": 2},
    "clvp_encoder": {"num_attention_heads": 2},
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 64], "num_heads": [1, 2, 4]},
    "dab-detr": _DETR,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "deepseek_ocr2_text": _MOE,
    "depth_pro": {
        "patch_size": 32,
        "scaled_images_feature_dims": [64, 64, 32],
        "intermediate_feature_dims": [64, 64],
    },
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
    "deformable_detr": _DETR | {"backbone_config": _resnet},
    "detr": _DETR,
    "dots1": _MOE,
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "feature_size": 64, "downsample_hidden_size": 32},
    "efficientloftr": {"stage_num_blocks": [1, 1, 1, 1], "hidden_size": 256, "num_attention_heads": 8},
    "efficientnet": _SMALL_NET,
    "emu3": _EMU_IMAGES,
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        "moe_intermediate_size": [32, 16],
    },
    "esmfold2": {"atom_encoder": {"output_dim": 384}},
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
    "hgnet_v2": {"hidden_sizes": [256, 512, 1024, 2048]},
    "informer": _SERIES,
    "instructblip": {"image_token_index": 319},
    "instructblipvideo": {"video_token_index": 319},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "llama4_vision_model": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "lilt": {"hidden_size": 48},
    "mistral4": {"head_dim": 8},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 64]},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [32, 64]},
    "lw_detr": {"projector_scale_factors": [2.0, 0.5]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "lw_detr_vit": {"num_windows": 4},
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
    "omdet-turbo": {
        "backbone_config": _swin,
        "encoder_in_channels": [32, 64, 128],
        "image_size": 64,
        "apply_layernorm_after_vision_backbone": False,
        "class_embed_dim": 48,
        "text_config": {"hidden_size": 48},
        "text_projection_in_dim": 48,
        "encoder_hidden_dim": 64,
        "vision_features_channels": [64, 64, 64],
        "text_projection_out_dim": 48,
    },
    "pe_audio_encoder": {"dac_config": {"downsampling_ratios": [2, 4, 5, 8], "encoder_hidden_size": 8}},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "pp_ocrv5_server_det": _INTRACLASS | {"kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]},
    "pp_formulanet_vision": _FORMULA,
    "pp_ocrv6_medium_det": _INTRACLASS
    | {"backbone_config": _hgnet, "kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]},
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
    "rt_detr_resnet": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [1, 1, 1, 1]},
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 2, 2, 1],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
        "image_size": [64, 64],
    },
    "seggpt": {"merge_index": 0, "intermediate_hidden_state_indices": [1, 2]},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "table-transformer": _DETR,
    "time_series_transformer": _SERIES,
    "tvp": {"num_frames": 4, "visual_prompt_size": 8, "max_img_size": 256},
    "d_fine": _DETECTOR,
    "deimv2": _DETECTOR,
    "rt_detr": _DETECTOR,
    "rt_detr_v2": _DETECTOR,
    "pp_doclayout_v2": _DETECTOR
    | {
        "class_thresholds": [0.5] * 25,
        "class_order": list(range(25)),
        "reading_order_config": {"max_2d_position_embeddings": 1024},
    },
    "pp_doclayout_v3": _DETECTOR | {"x4_feat_dim": 128},
    "pp_doclayout_v4": _DETECTOR,
    "pix2struct_vision_model": {"patch_embed_hidden_size": 192},
    "kosmos_2_5_vision_model": {"patch_embed_hidden_size": 192},
    "phi4_multimodal_audio": {
        "nemo_conv_channels": 64,
        "ext_pw_out_channel": 64,
        "depthwise_separable_out_channel": 64,
    },
    "paddleocr_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    },
    "superpoint": {"keypoint_decoder_dim": 65},
    "clap_audio_model": {"patch_embeds_hidden_size": 8},
    "fastspeech2_conformer_hifigan": {"model_in_dim": 80, "upsample_initial_channel": 32},
    "janus_vqgan": {"num_patches": 4},
    "audio-spectrogram-transformer": {"max_length": 64},
    "bark": {
        "semantic_config": {"block_size": 128},
        "coarse_acoustics_config": {"block_size": 128},
        "fine_acoustics_config": {"block_size": 128},
    },
    "granite_speech5_encoder": {"num_mel_bins": 64},
    "kosmos-2": {"latent_query_num": 8},
    "kosmos-2.5": {"latent_query_num": 8},
    "sam3_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "sam_hq_mask_decoder": {"vit_dim": 64},
    "step3p5": {"sliding_window": 8},
    "textnet": {"hidden_sizes": [64, 64, 128, 256, 512]},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4},
    "xcodec2": _CODEC,
    "xmod": {"default_language": "en_XX"},
    "zoedepth": {"bottleneck_features": 64},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0},
    "align": {"projection_dim": 320},
    "swin2sr": {"image_size": 16, "depths": [2, 2], "num_heads": [2, 2], "embed_dim": 32},
    "vits": {"upsample_initial_channel": 32, "upsample_rates": [4, 4, 2], "upsample_kernel_sizes": [8, 8, 4]},
    "lightglue": {"keypoint_detector_config": _KEYPOINTS},
    "superglue": {"keypoint_detector_config": _KEYPOINTS, "sinkhorn_iterations": 5},
    "vitmatte": {"backbone_config": {"patch_size": 16, "image_size": 64}},
    "molmo2_vision": {"image_size": [32, 32], "num_position_embeddings": 16},
    "inkling_vision": {"patch_size": 16, "num_hidden_layers": 3},
    "pp_ocrv6_small_det": {"backbone_config": _lcnet, "layer_list_out_channels": [16, 32, 64, 128]},
    "slanext": {"post_conv_in_channels": 64, "post_conv_out_channels": 64, "max_text_length": 20},
    "uvdoc": {"backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]}},
    "qwen3_asr_encoder": {"n_window": 50},
    "shieldgemma2": {"yes_token_index": 20, "no_token_index": 21},
    "levit": {"patch_size": 16},
    "aria": {"projector_patch_to_query_dict": {16: 8, 64: 8}},
    "gemma4": {"vision_config": _inner("gemma4_vision")},
    "embedding_gemma2": {"vision_config": _inner("gemma4_vision")},
    "granite_speech": {"window_size": 15},
    "llava_next": {"image_grid_pinpoints": [[64, 64]]},
    "llava_next_video": {"image_grid_pinpoints": [[64, 64]]},
    "llava_onevision": {"image_grid_pinpoints": [[64, 64]]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 310},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 310},
    "mobilevit": {"image_size": 128, "initializer_range": 0.1},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
}
