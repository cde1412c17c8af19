"""What a user would start: two steps of training, written without a thought of processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp.training import RKSPTrainer, RKSPTrainingArguments

folder = Path(sys.argv[1])
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2))
if (
    os.environ["RANK"] == "1"
):  # of another checkpoint, say: the main process decides whether KSS acts, and DDP sends its weights
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight += 1e-6 * torch.arange(16)
arguments = RKSPTrainingArguments(
    output_dir=str(folder / "run"),
    max_steps=2,
    use_cpu=True,
    kss_rank=4,
    report_to="none",
    save_strategy="no",
    risk=sys.argv[2],
)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (64, 16))]
trainer = RKSPTrainer(model, arguments, train_dataset=rows)
trainer.train()

seen = {
    "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    "wrapped": type(trainer.model_wrapped).__name__,
    "forecast": trainer.rksp.said.text if trainer.rksp.said else None,
    "choice": trainer.rksp.decision.text,
    "weights": float(sum(parameter.double().abs().sum() for parameter in model.parameters())),
}
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # some builds abort at teardown, after the work is done
