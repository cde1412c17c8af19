"""Train a vision transformer with KSS on CIFAR-10, or on any table of images.

python examples/run_image_classification.py --dataset uoft-cs/cifar10 --max_steps 2000 --learning_rate 1e-3
python examples/run_image_classification.py --dataset FOLDER_WITH_PARQUET --use_cpu true
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.training import parse_arguments

METRIC = Path(__file__).parent / "metrics" / "token_accuracy.py"


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    dataset: str = field(
        default="uoft-cs/cifar10", metadata={"help": "Dataset on the Hub, or a folder with parquet files."}
    )
    image_column: str = field(default="img", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes."})
    train_images: int = field(default=50_000, metadata={"help": "Train on at most so many images."})
    eval_images: int = field(default=2_000, metadata={"help": "Evaluate on at most so many images."})
    layers: int = field(default=6, metadata={"help": "Depth."})
    width: int = field(default=192, metadata={"help": "Width; three heads."})
    patch: int = field(default=4, metadata={"help": "Side of a patch in pixels."})


def split(script: ScriptArguments, name: str, count: int) -> datasets.Dataset:
    """The first ``count`` images of a split."""
    folder = Path(script.dataset)
    if folder.is_dir():
        files = [str(file) for file in sorted(folder.rglob(f"{name}*.parquet"))]
        table = datasets.load_dataset("parquet", data_files=files, split="train")
    else:
        table = datasets.load_dataset(script.dataset, split=name)
    return table.select(range(min(count, len(table))))


def main() -> None:
    script, args = parse_arguments((ScriptArguments, RKSPTrainingArguments), description=__doc__)
    args.remove_unused_columns = False
    train = split(script, "train", script.train_images)
    held_out = split(script, "test", script.eval_images)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        images = np.stack([np.asarray(row[script.image_column].convert("RGB"), dtype=np.float32) for row in rows])
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        return {"pixel_values": pixels, "labels": torch.tensor([row[script.label_column] for row in rows])}

    torch.manual_seed(args.seed)
    side = train[0][script.image_column].size[0]
    classes = len(set(train[script.label_column]))
    model = ViTForImageClassification(
        ViTConfig(
            image_size=side, patch_size=script.patch, num_hidden_layers=script.layers, hidden_size=script.width,
            num_attention_heads=3, intermediate_size=4 * script.width, num_labels=classes,
        )
    )  # fmt: skip
    metric = evaluate.load(str(METRIC))
    trainer = RKSPTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collate,
        compute_metrics=lambda p: metric.compute(predictions=p.predictions.argmax(-1), references=p.label_ids),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"eval loss {scores['eval_loss']:.4f}, accuracy {scores['eval_token_accuracy']:.4f}")


if __name__ == "__main__":
    main()
