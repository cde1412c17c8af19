"""Train the small models of the zoo and save each at 0, 10, 30 and 100% of its training. Weights are not committed.

    HF_RKSP_DATA=... python scripts/train_zoo.py gpt2 llama moe mamba kan vit

Text: WikiText-103, validation split, byte-level BPE with 2,048 tokens; the audits read the test split. Images: CIFAR-10, training
split at 32 pixels; the audits read the test split. AdamW, weight decay 0.1, clipping at 1, 10% warm-up, cosine; float32; seed 42.
RKSPTrainer trains with KSS off: the audits show what training changes, not what KSS changes. Finished models are skipped.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, TrainerCallback

import hf_rksp.architectures  # noqa: F401 - registers the KAN model
from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.inputs import TextSource, read_text, train_byte_level_bpe

#: Progress at which a model is saved, as a fraction of its training.
PROGRESS = (0.0, 0.1, 0.3, 1.0)
STEPS, TOKENS, VOCABULARY = 1000, 128, 2048
_GPT2 = {"n_layer": 6, "n_head": 4, "n_embd": 192, "n_positions": TOKENS, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
_GPT2 |= {"attn_pdrop": 0.0}
_LLAMA = {"num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": TOKENS}
#: Family -> configuration, learning rate, batch.
MODELS = {
    "gpt2": (_GPT2 | {"model_type": "gpt2"}, 1e-3, 8),
    "llama": (_LLAMA | {"model_type": "llama", "hidden_size": 192, "intermediate_size": 512}, 1e-3, 8),
    "moe": (
        _LLAMA
        | {"model_type": "mixtral", "hidden_size": 128, "intermediate_size": 256, "num_local_experts": 8}
        | {
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "router_aux_loss_coef": 0.02,
            "output_router_logits": True,
        },
        1e-3,
        8,
    ),
    # On a CPU, its scan is a loop in Python: few layers, short sequences.
    "mamba": ({"model_type": "mamba", "hidden_size": 256, "num_hidden_layers": 4, "state_size": 16}, 1e-3, 8),
    "kan": (_GPT2 | {"model_type": "gpt2_kan", "n_embd": 128, "n_inner": 128, "spline_order": 4}, 1e-3, 8),
    "vit": (
        {"model_type": "vit", "image_size": 32, "patch_size": 4, "num_hidden_layers": 6, "hidden_size": 192}
        | {"num_attention_heads": 3, "intermediate_size": 768, "num_labels": 10},
        1e-3,
        32,
    ),
}


class SaveAt(TrainerCallback):
    """Saves the model and its tokenizer at each `PROGRESS`."""

    def __init__(self, folder: Path, tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def save(self, model, progress: float) -> None:
        target = self.folder / f"{round(100 * progress):03d}"
        model.save_pretrained(target)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(target)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for progress in PROGRESS:
            if state.global_step == round(progress * STEPS):
                self.save(model, progress)


def text_task(values: dict, data: Path, tokens: int):
    """Model, tokenizer, rows and collator for language modelling."""
    text = read_text(TextSource(str(data / "wikitext" / "wikitext-103-v1"), split="validation"), 10**7)
    tokenizer = train_byte_level_bpe(text, VOCABULARY)
    ids = tokenizer(text, verbose=False)["input_ids"]
    rows = [{"input_ids": ids[i : i + tokens]} for i in range(0, len(ids) - tokens, tokens)]
    sizes = {
        "vocab_size": len(tokenizer),
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "use_cache": False,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values | sizes))

    def collate(batch):
        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": ids}

    return model, tokenizer, rows, collate


def image_task(values: dict, data: Path):
    """Model, rows and collator for classification."""
    import datasets

    file = str(data / "cifar10" / "plain_text" / "train-00000-of-00001.parquet")
    table = datasets.load_dataset("parquet", data_files=file, split="train")
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**values))

    def collate(batch):
        pixels = torch.from_numpy(np.stack([np.asarray(row["img"].convert("RGB"), np.float32) for row in batch]))
        return {
            "pixel_values": (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5,
            "labels": torch.tensor([row["label"] for row in batch]),
        }

    return model, None, table, collate


def train(family: str, folder: Path, data: Path) -> None:
    """Train one model and save it at each `PROGRESS`."""
    values, rate, batch = MODELS[family]
    torch.manual_seed(42)
    if family == "vit":
        model, tokenizer, rows, collate = image_task(values, data)
    else:
        model, tokenizer, rows, collate = text_task(values, data, 48 if family == "mamba" else TOKENS)
    saver = SaveAt(folder / family, tokenizer)
    args = RKSPTrainingArguments(
        output_dir=str(folder / family / "run"),
        kss=False,
        spectrum_every=STEPS // 10,
        max_steps=STEPS,
        learning_rate=rate,
        weight_decay=0.1,
        warmup_steps=STEPS // 10,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=batch,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        use_cpu=True,
        seed=42,
    )
    trainer = RKSPTrainer(model, args, train_dataset=rows, data_collator=collate, callbacks=[saver])
    saver.save(model, 0.0)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    summary = {
        "family": family,
        "parameters": model.num_parameters(),
        "steps": STEPS,
        "learning_rate": rate,
        "batch": batch,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    (folder / family / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{family}: {model.num_parameters() / 1e6:.1f} M parameters, loss {losses[0]:.3f} to {losses[-1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"one of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--out", default="out/zoo/trained", metavar="FOLDER", help="default: out/zoo/trained")
    args = parser.parse_args()
    if unknown := set(args.families) - set(MODELS):
        parser.error(f"{min(unknown)!r} is none of {', '.join(MODELS)}")
    if "HF_RKSP_DATA" not in os.environ:
        sys.exit("HF_RKSP_DATA is not set: the folder that holds wikitext/ and cifar10/")
    for family in args.families or MODELS:
        if (Path(args.out) / family / "summary.json").exists():
            print(f"{family}: already trained")
            continue
        train(family, Path(args.out), Path(os.environ["HF_RKSP_DATA"]))


if __name__ == "__main__":
    main()
