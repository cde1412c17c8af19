"""The networks of the published runs: classes of transformers, with the initialisation that the source has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


@torch.no_grad()
def make(values: Mapping[str, Any], seed: int) -> nn.Module:
    """The network of config.yaml with random weights.

    Args:
        values: fields of its configuration, ``model_type``, ``init`` (a name of `INITIALISATIONS`), perhaps ``forward``, and
            ``norm`` "none" to leave all norms out.
    """
    torch.manual_seed(seed)
    fields = {name: value for name, value in values.items() if name not in ("init", "forward", "norm")}
    config = AutoConfig.for_model(**fields, use_cache=False, attn_implementation="sdpa")
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    INITIALISATIONS[values["init"]](model)
    if values.get("norm") == "none":
        for name in [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]:
            model.set_submodule(name, nn.Identity())
    return model


def _cut(weight: Tensor, std: float) -> None:
    """Normal, cut at three standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def own(model: nn.Module) -> None:
    """As transformers has initialised it: a standard deviation of .02."""


def fan_in(model: nn.Module) -> None:
    """One over the root of the inputs; embeddings: one over the root of the width."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _cut(module.weight, module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


def haliax(model: nn.Module) -> None:
    """One over the root of the inputs; embeddings: one over the width (haliax.nn.Linear and Embedding)."""
    fan_in(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            _cut(module.weight, 1 / module.embedding_dim)


def glorot(model: nn.Module) -> None:
    """The root of two over inputs plus outputs; embeddings: 1."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _cut(module.weight, math.sqrt(2 / (module.in_features + module.out_features)))
        elif isinstance(module, nn.Embedding):
            _cut(module.weight, 1.0)


def cs336(model: nn.Module) -> None:
    """The same, with attention as torch initialises a linear layer."""
    glorot(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "self_attn" in name:
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))


def neox(model: Any) -> None:
    """GPT-NeoX: the root of 2 / (5 width); the last matrix of each part of a block 2 / (layers x root of the width)."""
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            last = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            nn.init.normal_(weight, std=2 / layers / math.sqrt(width) if last else math.sqrt(2 / (5 * width)))


INITIALISATIONS: dict[str, Callable[[Any], None]] = {
    "own": own,
    "fan in": fan_in,
    "haliax": haliax,
    "glorot": glorot,
    "cs336": cs336,
    "neox": neox,
}
