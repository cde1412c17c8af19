"""Train a causal language model with KSS: from a configuration or a checkpoint, on any text.

    python examples/run_clm.py --config examples/configs/clm_tiny.yaml
    python examples/run_clm.py --dataset Salesforce/wikitext --dataset_config wikitext-103-v1 --model_type llama ...
    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml examples/run_clm.py --config ...

The text is a dataset on the Hub, a folder or file of text or parquet, or `builtin` (the language reference of your Python).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.inputs.text import TextSource, read_text
from hf_rksp.inputs.tokenizers import load_tokenizer
from hf_rksp.training import parse_arguments

METRIC = Path(__file__).parent / "metrics" / "token_accuracy.py"


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from; none: initialise."}
    )
    model_type: str = field(default="gpt2", metadata={"help": "Architecture to initialise: gpt2, llama, mixtral, ..."})
    config_overrides: str = field(default="{}", metadata={"help": 'Its configuration as JSON: {"n_layer": 4}'})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer; none: a byte-level BPE trained on the text."}
    )
    vocab_size: int = field(default=2048, metadata={"help": "Of a tokenizer that is trained."})
    dataset: str = field(default="builtin", metadata={"help": "Dataset on the Hub, file, folder, or 'builtin'."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on; builtin: its last tenth."})
    block_size: int = field(default=128, metadata={"help": "Tokens of a sequence."})
    max_tokens: int = field(default=10_000_000, metadata={"help": "Read at most about so many tokens of each split."})


def texts(script: ScriptArguments) -> tuple[str, str]:
    """Training and evaluation text."""
    if script.dataset == "builtin":
        text = read_text(TextSource(), script.max_tokens)
        cut = len(text) * 9 // 10
        return text[:cut], text[cut:]
    sources = (
        TextSource(script.dataset, script.dataset_config, split) for split in (script.train_split, script.eval_split)
    )
    train, held_out = (read_text(source, script.max_tokens) for source in sources)
    return train, held_out


def blocks(text: str, tokenizer, size: int) -> list[dict[str, list[int]]]:
    """The text cut into sequences of ``size`` tokens, the rest left out."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return [{"input_ids": row, "labels": row} for row in rows]


def load(script: ScriptArguments, text: str, seed: int):
    """Tokenizer and model: of the checkpoint, or trained on ``text`` and initialised."""
    tokenizer, _ = load_tokenizer(script.tokenizer or script.model_name_or_path, text, script.vocab_size)
    torch.manual_seed(seed)
    if script.model_name_or_path:
        return tokenizer, AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    config = AutoConfig.for_model(script.model_type, vocab_size=len(tokenizer), **json.loads(script.config_overrides))
    return tokenizer, AutoModelForCausalLM.from_config(config)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """All sequences have one length: no padding."""
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    script, args = parse_arguments((ScriptArguments, RKSPTrainingArguments), description=__doc__)
    train_text, eval_text = texts(script)
    tokenizer, model = load(script, train_text, args.seed)
    metric = evaluate.load(str(METRIC))

    def compute_metrics(prediction) -> dict[str, float]:
        return metric.compute(
            predictions=prediction.predictions[:, :-1].ravel(), references=prediction.label_ids[:, 1:].ravel()
        )

    trainer = RKSPTrainer(
        model,
        args,
        train_dataset=blocks(train_text, tokenizer, script.block_size),
        eval_dataset=blocks(eval_text, tokenizer, script.block_size)[:256],
        data_collator=collate,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    if trainer.is_world_process_zero():
        print(
            f"world size {args.world_size}, {trainer.accelerator.distributed_type.value}, KSS {trainer.kss_switch}: {trainer.kss}"
        )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"eval loss {scores['eval_loss']:.4f}, perplexity {math.exp(min(scores['eval_loss'], 50)):.2f}, "
              f"token accuracy {scores['eval_token_accuracy']:.4f}")  # fmt: skip
        if trainer.rksp:
            print(f"spectra: {trainer.rksp.path}")


if __name__ == "__main__":
    main()
