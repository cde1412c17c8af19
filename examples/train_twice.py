"""The same small model twice at a learning rate where it diverges: without KSS, and with it. One page shows both runs.

    python examples/train_twice.py --out out/divergence

GPT-2 without any normalisation (the case that the paper calls unstable) learns associative recall: after `k1 v1 k2 v2 0 0 0 query`
it predicts the value of the query. Both runs have the same weights and batches, and clip gradients at 1. One seed is an
illustration; scripts/reproduce/kss_default has 24, with intervals.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, ProgressCallback

from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.report import read_history, write_timeline


class Recall(torch.utils.data.Dataset):
    """``count`` questions; keys are 1 to 15, values 16 to 31, so that guessing has a loss of ln 16 = 2.77."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        keys = torch.stack([torch.randperm(15, generator=generator)[:2] + 1 for _ in range(count)])
        values = torch.randint(16, 32, (count, 2), generator=generator)
        query, rows = torch.randint(0, 2, (count,), generator=generator), torch.arange(count)
        self.ids = torch.zeros(count, 9, dtype=torch.long)
        self.ids[:, 0:4:2], self.ids[:, 1:4:2] = keys, values
        self.ids[:, -2], self.ids[:, -1] = keys[rows, query], values[rows, query]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = torch.full((9,), -100)
        labels[-1] = self.ids[index, -1]
        return {"input_ids": self.ids[index], "labels": labels}


def network(seed: int) -> GPT2LMHeadModel:
    """GPT-2 with four layers and width 128, without its norms."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=4, n_embd=128, n_head=4, vocab_size=32, n_positions=9, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
    model.loss_type = "ForCausalLM"
    return model


class Bar(ProgressCallback):
    """A progress bar with the loss and the gradient norm, instead of every row that Trainer logs."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(
                loss=f"{logs['loss']:.3f}", gradient=f"{logs['grad_norm']:.1f}", refresh=False
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("out/divergence"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small: more threads wait for each other
    data, ends, forecast = Recall(32 * args.steps, 10_000 + args.seed), [], ""
    for name, kss in (("without KSS", False), ("with KSS", True)):
        print(f"{name}: {args.steps} steps at learning rate {args.learning_rate:g}", flush=True)
        settings = RKSPTrainingArguments(
            output_dir=str(args.out / name.replace(" ", "_")),
            run_name=name,
            use_cpu=True,
            kss=kss,
            risk="off" if kss else "warn",
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=50,
            weight_decay=0.01,
            max_steps=args.steps,
            per_device_train_batch_size=32,
            logging_steps=5,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            spectrum_every=max(args.steps // 40, 1),
            spectrum_rank=32,
            run_report=False,
            seed=args.seed,
        )
        trainer = RKSPTrainer(network(args.seed), settings, train_dataset=data)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(Bar())
        trainer.train()
        forecast = forecast or trainer.rksp.said.text
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        norms = [row["grad_norm"] for row in trainer.state.log_history if "loss" in row]
        finite = [loss for loss in losses if math.isfinite(loss)]
        ends.append(f"{name:12s} largest loss {max(finite):10.2f}, largest gradient norm {max(norms):10.1f}, "
                    f"last loss {losses[-1]:.3f} (guessing {math.log(16):.3f})")  # fmt: skip
    histories = [read_history(args.out / name / "rksp_history.jsonl") for name in ("without_KSS", "with_KSS")]
    write_timeline(histories, args.out / "divergence.html")
    print("\n".join(ends))
    print(f"Before the first step of the run without KSS: {forecast}")
    print(f"both runs on one page: {(args.out / 'divergence.html').resolve()}")


if __name__ == "__main__":
    main()
