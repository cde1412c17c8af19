"""Trained weights that are trained on: small networks learn WikiText first, and then another text or a classification."""

from __future__ import annotations

import copy
import pydoc_data.topics
import random
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

from scripts.reproduce.data import passages, wikitext
from scripts.reproduce.risk.design import SEED, Configuration
from scripts.reproduce.risk.ensemble import Recipe, train
from scripts.reproduce.risk.networks import FAMILIES
from scripts.reproduce.risk.tasks import generator_of

#: Id of the mask token; bytes have those below it.
MASK = 256
MASKED = 0.15
#: Learning rates of the first stage.
COARSE = tuple(2.0**-power for power in range(15, 0, -1))
#: How the weights were trained before: by a run that is far below the edge of these networks. The encoder learns little from a
#: masked batch, and stays at the frequencies of the bytes for some 900 steps.
_BEFORE = Recipe(steps=500, warmup=50, schedule="cosine", clip=1.0)
_BEFORE_MASKED = Recipe(steps=3000, warmup=200, schedule="cosine", clip=1.0)
_BEFORE_RATE, _BEFORE_MASKED_RATE = 2e-3, 1e-3
_BEFORE_SIZE, _BEFORE_MASKED_SIZE = 16, 64
CLASSES = 4


def draw(number: int) -> Configuration:
    """Configuration ``number`` of the random design of fine-tuning."""
    dice = random.Random(f"{SEED}-finetune-{number}")
    family = ("preln", "rmsnorm", "llama", "bert")[number % 4]
    objective = dice.choice(("classification", "masked" if family == "bert" else "causal"))
    return {
        "start": "pretrained",
        "family": family,
        "objective": objective,
        "task": "topics" if objective != "classification" else "kinds",
        "adaptation": dice.choices(("full", "lora"), (0.6, 0.4))[0],
        "width": dice.choice((32, 48, 64, 96)),
        "layers": dice.choice((2, 3, 4, 6)),
        "heads": dice.choice((2, 4)),
        "std": 0.02,
        "sequences": dice.choice((8, 16)),
        "length": 32,
        "steps": dice.choice((100, 150, 200)),
        "warmup": dice.choice((0, 10, 20)),
        "schedule": dice.choice(("constant", "cosine")),
        "optimizer": "adamw",
        "beta2": dice.choice((0.95, 0.999)),
        "decay": dice.choice((0.0, 0.01, 0.1)),
        "clip": dice.choice((None, 1.0)),
        "dtype": "float32",
    }


def bert(shape: dict[str, Any]) -> BertForMaskedLM:
    """BERT: Post-LN, attention both ways."""
    return BertForMaskedLM(
        BertConfig(
            num_hidden_layers=shape["layers"], hidden_size=shape["width"], num_attention_heads=shape["heads"],
            intermediate_size=4 * shape["width"], vocab_size=MASK + 1, max_position_embeddings=shape["length"],
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager", pad_token_id=None,
            architectures=["BertForMaskedLM"],
        )
    )  # fmt: skip


class Classifier(nn.Module):
    """A body with a fresh linear head on the mean of its last states."""

    def __init__(self, body: nn.Module, width: int, config: Any) -> None:
        super().__init__()
        self.body, self.config = body, config
        self.score = nn.Linear(width, CLASSES, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SimpleNamespace:
        logits = self.score(self.body(input_ids, **kwargs).last_hidden_state.mean(1))
        return SimpleNamespace(logits=logits, loss=None if labels is None else cross_entropy(logits, labels))


def models(
    configuration: Configuration, seeds: tuple[int, ...], device: torch.device | str = "cpu"
) -> dict[int, nn.Module]:
    """The same trained weights for every seed, with the fresh parts (head, LoRA) of the seed."""
    shape = {name: configuration[name] for name in ("width", "layers", "heads", "std", "length")} | {"vocabulary": 256}
    torch.manual_seed(0)
    before = (bert if configuration["family"] == "bert" else FAMILIES[configuration["family"]])(shape).eval()
    masked = configuration["family"] == "bert"
    objective, size = ("masked", _BEFORE_MASKED_SIZE) if masked else ("causal", _BEFORE_SIZE)
    recipe, rate = (_BEFORE_MASKED, _BEFORE_MASKED_RATE) if masked else (_BEFORE, _BEFORE_RATE)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        ids, labels = reading(wikitext("validation"), 10_000, step, size, configuration["length"], objective)
        return ids[None], labels[None]

    learnt = train([before], [rate], batches, recipe, objective, device).weights
    with torch.no_grad():
        for name, weight in before.named_parameters():
            weight.copy_(learnt[name][0])
    return {seed: _adapted(copy.deepcopy(before), configuration, seed).eval() for seed in seeds}


def _adapted(model: Any, configuration: Configuration, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    body = model
    if configuration["adaptation"] == "lora":
        linear = ["c_attn", "c_fc"] if configuration["family"] in ("preln", "rmsnorm") else "all-linear"
        fan = configuration["family"] in ("preln", "rmsnorm")
        body = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules=linear, fan_in_fan_out=fan)
        ).base_model.model
    if configuration["objective"] != "classification":
        return body
    return Classifier(body.base_model, configuration["width"], model.config)


def reading(
    data: Tensor, seed: int, step: int, size: int, length: int, objective: str, mask: int = MASK
) -> tuple[Tensor, Tensor]:
    """Ids and labels of a text."""
    generator = generator_of(seed, step)
    ids = passages(data, generator, size, length)
    if objective != "masked":
        return ids, ids
    hidden = torch.rand(ids.shape, generator=generator) < MASKED
    hidden[:, 0] = True  # each sequence is asked something
    return ids.masked_fill(hidden, mask), ids.masked_fill(~hidden, -100)


def kinds(seed: int, step: int, size: int, length: int, *texts: Tensor) -> tuple[Tensor, Tensor]:
    """Which of four a passage is: of the first text, the same backwards, of the second text, the same backwards."""
    generator = generator_of(seed, step)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    rows = []
    for label in labels.tolist():
        (row,) = passages(texts[label // 2], generator, 1, length)
        rows.append(row.flip(0) if label % 2 else row)
    return torch.stack(rows), labels


def batch(configuration: Configuration, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a run."""
    size, length, objective = (configuration[name] for name in ("sequences", "length", "objective"))
    if objective == "classification":
        return kinds(seed, step, size, length, wikitext("validation"), topics())
    return reading(topics(), seed, step, size, length, objective)


@cache
def topics() -> Tensor:
    """The language reference of this Python in bytes."""
    text = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
