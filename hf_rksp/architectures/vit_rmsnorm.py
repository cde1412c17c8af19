"""ViT with RMSNorm in place of LayerNorm (Table 9 of the paper compares the two)."""

from __future__ import annotations

from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel, initialization

from hf_rksp.architectures.host import Host


class ViTRMSNormConfig(ViTConfig):
    """ViT's own."""

    model_type = "vit_rmsnorm"


class _Initialised(Host):
    """RMSNorm starts at 1, as LayerNorm does."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.RMSNorm):
            initialization.ones_(module.weight)


def _exchange(model: nn.Module, width: int, eps: float) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, nn.RMSNorm(width, eps))


class ViTRMSNormModel(_Initialised, ViTModel):
    """Without a head."""

    config_class = ViTRMSNormConfig

    def __init__(self, config: ViTRMSNormConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config, add_pooling_layer, use_mask_token)
        _exchange(self, config.hidden_size, config.layer_norm_eps)
        self.post_init()


class ViTRMSNormForImageClassification(_Initialised, ViTForImageClassification):
    """With a classifier."""

    config_class = ViTRMSNormConfig

    def __init__(self, config: ViTRMSNormConfig) -> None:
        super().__init__(config)
        self.vit = ViTRMSNormModel(config, add_pooling_layer=False)
        self.post_init()
