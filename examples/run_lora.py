"""Fine-tune with LoRA and KSS: the base is frozen, the regulariser acts through the adapters.

    python examples/run_lora.py --model_name_or_path openai-community/gpt2 --dataset Salesforce/wikitext \\
        --dataset_config wikitext-103-v1 --learning_rate 1e-3 --max_steps 500

Needs a checkpoint; without one a small GPT-2 is initialised, which shows the mechanics and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig, get_peft_model
from run_clm import ScriptArguments, blocks, collate, load, texts

from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.training import parse_arguments


@dataclass
class ModelArguments(ScriptArguments):
    """As in run_clm.py; what is initialised without a checkpoint is small."""

    config_overrides: str = field(
        default='{"n_layer": 4, "n_embd": 128, "n_head": 4}', metadata={"help": "Configuration to initialise, as JSON."}
    )


@dataclass
class LoraArguments:
    """The adapters."""

    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters."})
    lora_target_modules: str = field(default="all-linear", metadata={"help": "Modules that get one, comma-separated."})


def main() -> None:
    script, lora, args = parse_arguments((ModelArguments, LoraArguments, RKSPTrainingArguments), description=__doc__)
    train_text, eval_text = texts(script)
    tokenizer, model = load(script, train_text, args.seed)
    targets = lora.lora_target_modules.split(",")
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        target_modules=targets[0] if len(targets) == 1 else targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    trainer = RKSPTrainer(
        model,
        args,
        train_dataset=blocks(train_text, tokenizer, script.block_size),
        eval_dataset=blocks(eval_text, tokenizer, script.block_size)[:256],
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{trained} parameters trained, eval loss {scores['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
