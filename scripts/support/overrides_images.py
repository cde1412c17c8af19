"""Values of tiny configurations that no rule of `tiny` finds: models of images. See `overrides`."""

from __future__ import annotations

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


def _swin(embed_dim: int = 16) -> SwinConfig:
    return SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=embed_dim,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_indices=[2, 3, 4],
    )


def _swin_24() -> SwinConfig:
    return _swin(24)


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
_FORMULA = {
    "post_conv_in_channels": 64,
    "post_conv_mid_channels": 64,
    "post_conv_out_channels": 64,
    "decoder_hidden_size": 64,
}
_DETECTOR = {"decoder_in_channels": [64, 64, 64]}
_SMALL_NET = {"hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.25}


IMAGES: dict[str, dict[str, Any]] = {
    # Another width than that of the text tower: a tuple of states can then be told from that of another stream.
    "grounding-dino": {"d_model": 32},
    "mm-grounding-dino": {"d_model": 32},
    "align_vision_model": {"width_coefficient": 1.0, "depth_coefficient": 0.25, "hidden_dim": 1280},
    "bit": {"num_groups": 4},
    "conditional_detr": _DETR,
    "chmv2": {"backbone_config": {"return_class_token": True}},
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 32, 64], "num_heads": [1, 2, 4]},
    "dab-detr": _DETR,
    "depth_pro": {
        "patch_size": 32,
        "scaled_images_feature_dims": [64, 64, 32],
        "intermediate_feature_dims": [64, 64],
    },
    "deformable_detr": _DETR | {"backbone_config": _resnet},
    "detr": _DETR,
    "efficientloftr": {"stage_num_blocks": [1, 1, 1, 1], "hidden_size": 256, "num_attention_heads": 8},
    "efficientnet": _SMALL_NET,
    "hgnet_v2": {"hidden_sizes": [256, 512, 1024, 2048]},
    "llama4_vision_model": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "layoutlmv3": {"coordinate_size": 10, "shape_size": 12},
    "mllama_vision_model": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 64]},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [32, 64]},
    "lw_detr": {"projector_scale_factors": [2.0, 0.5]},
    "lw_detr_vit": {"num_windows": 4},
    "omdet-turbo": {
        # Wider than the rest, so that a tuple of its states can be told from that of another stream.
        "backbone_config": _swin_24,
        "encoder_in_channels": [48, 96, 192],
        "image_size": 64,
        "apply_layernorm_after_vision_backbone": False,
        "class_embed_dim": 48,
        "text_config": {"hidden_size": 48},
        "text_projection_in_dim": 48,
        "encoder_hidden_dim": 64,
        "vision_features_channels": [64, 64, 64],
        "text_projection_out_dim": 48,
    },
    "pp_ocrv5_server_det": _INTRACLASS | {"kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]},
    "pp_formulanet_vision": _FORMULA,
    "pp_ocrv6_medium_det": _INTRACLASS
    | {"backbone_config": _hgnet, "kernel_list": [3, 2, 2], "scale_factor_list": [1, 2, 4, 8]},
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
    "table-transformer": _DETR,
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
    "superpoint": {"keypoint_decoder_dim": 65},
    "janus_vqgan": {"num_patches": 4},
    "sam3_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    },
    "sam_hq_mask_decoder": {"vit_dim": 64},
    "textnet": {"hidden_sizes": [64, 64, 128, 256, 512]},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4},
    "zoedepth": {"bottleneck_features": 64},
    "swin2sr": {"image_size": 16, "depths": [2, 2], "num_heads": [2, 2], "embed_dim": 32},
    "lightglue": {"keypoint_detector_config": _KEYPOINTS},
    "superglue": {"keypoint_detector_config": _KEYPOINTS, "sinkhorn_iterations": 5},
    "vitmatte": {"backbone_config": {"patch_size": 16, "image_size": 64}},
    "molmo2_vision": {"image_size": [32, 32], "num_position_embeddings": 16},
    "inkling_vision": {"patch_size": 16, "num_hidden_layers": 3},
    "pp_ocrv6_small_det": {"backbone_config": _lcnet, "layer_list_out_channels": [16, 32, 64, 128]},
    "slanext": {"post_conv_in_channels": 64, "post_conv_out_channels": 64, "max_text_length": 20},
    "uvdoc": {"backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]}},
    "levit": {"patch_size": 16},
    "mobilevit": {"image_size": 128, "initializer_range": 0.1},
}
