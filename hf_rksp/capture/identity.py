"""Whether two models are the same one: for a profile that goes on where another stopped."""

from __future__ import annotations

from typing import Any

from torch import nn


def model_identity(model: nn.Module) -> dict[str, Any]:
    """What a report calls the model: name, class, model_type, parameters."""
    config = getattr(model, "config", None)
    return {
        "name": getattr(config, "name_or_path", "") or type(model).__name__,
        "class": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
