"""Supervised fine-tuning with TRL's SFTTrainer and KSS: stack the mixin on the trainer, the fields on its configuration.

    pip install trl
    python examples/run_sft_trl.py --model_name_or_path Qwen/Qwen3-0.6B --dataset trl-lib/Capybara ...

A file of the dataset holds prompt-completion or conversational rows (JSON lines or parquet), as TRL expects them. Without
one, questions on the topics of Python's language reference are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from trl import SFTConfig, SFTTrainer

from hf_rksp import RKSPArguments, RKSPTrainerMixin
from hf_rksp.inputs.text import TextSource, read_text
from hf_rksp.inputs.tokenizers import load_tokenizer
from hf_rksp.training import parse_arguments


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint; none: a small GPT-2."})
    dataset: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a .jsonl or .parquet file."})
    split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})


@dataclass
class Arguments(RKSPArguments, SFTConfig):
    """SFTConfig with the fields of KSS and of the monitor."""


class Trainer(RKSPTrainerMixin, SFTTrainer):
    """SFTTrainer with KSS and the monitor."""


def rows(script: ScriptArguments) -> datasets.Dataset:
    """Prompt and completion."""
    if script.dataset is None:
        from pydoc_data.topics import topics

        pairs = [{"prompt": f"Explain: {name}\n", "completion": text[:400]} for name, text in sorted(topics.items())]
        return datasets.Dataset.from_list(pairs)
    if Path(script.dataset).is_file():
        kind = "parquet" if script.dataset.endswith(".parquet") else "json"
        return datasets.load_dataset(kind, data_files=script.dataset, split="train")
    return datasets.load_dataset(script.dataset, split=script.split)


def main() -> None:
    script, args = parse_arguments((ScriptArguments, Arguments), description=__doc__)
    tokenizer, _ = load_tokenizer(script.model_name_or_path, read_text(TextSource(), 100_000), 2048)
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    torch.manual_seed(args.seed)
    if script.model_name_or_path:
        model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    else:
        model = AutoModelForCausalLM.from_config(
            GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=len(tokenizer), n_positions=args.max_length or 1024)
        )
    trainer = Trainer(model, args, train_dataset=rows(script), processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"final loss {[row['loss'] for row in trainer.state.log_history if 'loss' in row][-1]:.4f}")


if __name__ == "__main__":
    main()
