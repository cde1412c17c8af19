"""How far the weights of a block move in the first steps after depth warm-up has unlocked it, with torch's AdamW and under ZeRO.

    python scripts/bench/unlocking.py          # about five minutes; DeepSpeed compiles its communication at first use

A torch optimizer counts the steps of a block from its unlocking on. In ZeRO's flat groups one count serves all weights, so the
second moment of a block that is unlocked late looks as if it had been averaged over the whole run. The table has the root mean
square of the update of the unlocked block, divided by the learning rate. Each way is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch
from training import Tokens, network
from transformers import PrinterCallback, TrainerCallback

from hf_rksp import RKSPTrainer, RKSPTrainingArguments

#: Steps before the unlocking, steps after it, and those that are printed.
BEFORE, AFTER = 1500, 60
SHOWN = (1, 2, 5, 10, 20, 50)
RATE, BETAS = 1e-3, (0.9, 0.999)
WAYS = [("torch", 0), ("ZeRO-1", 0), ("ZeRO-1", 20)]


class Moves(TrainerCallback):
    """Notes the update of the last block in every step after its unlocking, from one forward pass to the next.

    DeepSpeed makes its step inside of backward, and a ramp acts after the step: no callback stands around both.
    """

    def __init__(self, model: Any) -> None:
        self.sizes: list[float] = []
        self._step = 0
        self._kept: torch.Tensor | None = None
        self._weights = list(model.transformer.h[-1].mlp.parameters())
        model.transformer.register_forward_pre_hook(self._begin)

    def _begin(self, module: Any, args: Any) -> None:
        now = torch.cat([weight.detach().flatten() for weight in self._weights])
        if self._kept is not None and self._step > BEFORE:
            self.sizes.append(float((now - self._kept).square().mean().sqrt()) / RATE)
        self._kept = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """So many steps are done."""
        self._step = state.global_step


def one(way: str, ramp: int) -> list[float]:
    """Train; the sizes of the updates."""
    zero = {}
    if way != "torch":
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
        auto = dict.fromkeys(
            ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
        )
        zero = {"deepspeed": auto | {"zero_optimization": {"stage": 1}}}
    torch.manual_seed(0)
    model = network(32, 2, 16)
    moves = Moves(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RKSPTrainingArguments(
            output_dir=folder, use_cpu=True, max_steps=BEFORE + AFTER, per_device_train_batch_size=4, learning_rate=RATE,
            lr_scheduler_type="constant", adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=0.0, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, kss=False, spectrum=False, depth_warmup="paper",
            depth_warmup_begin=BEFORE, depth_warmup_groups=1, depth_warmup_ramp=ramp, **zero,
        )  # fmt: skip
        trainer = RKSPTrainer(model, arguments, train_dataset=Tokens(64, 16), callbacks=[moves])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return moves.sizes


def main() -> None:
    """Print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\n" + json.dumps(one(args.one[0], int(args.one[1]))), flush=True)
        os._exit(0)  # some builds of DeepSpeed abort at teardown
    first = (1 - BETAS[0]) / (1 - BETAS[0] ** BEFORE) / math.sqrt((1 - BETAS[1]) / (1 - BETAS[1] ** BEFORE))
    print(f"unlocked after {BEFORE:,} steps, betas {BETAS}; RMS update of the block over the learning rate in its step")
    print(f"{'':<20}" + "".join(f"{step:>7}" for step in SHOWN) + f"{'largest':>9}")
    for way, ramp in WAYS:
        command = [sys.executable, __file__, "--one", way, str(ramp)]
        environment = os.environ | {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        sizes = json.loads(done.stdout.strip().splitlines()[-1])
        name = f"{way}, ramp {ramp}" if ramp else way
        print(f"{name:<20}" + "".join(f"{sizes[step - 1]:>7.2f}" for step in SHOWN) + f"{max(sizes):>9.2f}", flush=True)
    print(f"by the formula the first update under ZeRO is {first:.2f}")


if __name__ == "__main__":
    main()
