"""What KSS and the monitor cost while training: step times of Trainer and RKSPTrainer, taking turns in one run.

    make bench          # or: python scripts/bench/training.py [--quick] [--json training.json]

GPT-2 of several sizes on random tokens, float32, AdamW. What KSS adds is measured in pairs: one step without it and one with it,
on the same batch of the same model, in changing order; the overhead is the median over the pairs with a 95% interval (of the
median, from the order statistics). The other contestants train the same model for a few steps per turn, the order changes from
turn to turn, and the first step of a turn does not count. The paper's schedule acts at one step in ten, so for it means are
what matters; the other overheads are ratios of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, logging

from hf_rksp import KSSConfig, RKSPTrainer, RKSPTrainingArguments, SpectralShaper
from hf_rksp.machine import describe_machine, peak_memory, versions

#: width, layers, sequences, tokens of each, steps a turn, turns
SIZES = [(128, 4, 8, 64, 21, 5), (256, 4, 8, 64, 21, 3), (512, 4, 8, 64, 11, 5), (512, 8, 8, 64, 11, 3),
         (512, 4, 8, 256, 11, 2), (768, 12, 4, 128, 11, 2)]  # fmt: skip
QUICK = [(128, 4, 8, 64, 21, 2), (512, 4, 8, 64, 11, 2)]
#: Pairs of steps, without KSS and with it.
PAIRS = 60
#: The same, with gradients accumulated over four batches.
ACCUMULATED = (512, 4, 8, 64, 5, 3)
DEFAULT = {"kss": True, "spectrum": False}
CONTESTANTS = {
    "Trainer": {"kss": False, "spectrum": False},
    "KSS, paper": {"kss": True, "kss_schedule": "paper", "spectrum": False},
    "monitor, between profiles": {
        "kss": False,
        "spectrum_every": 0,
        "spectrum_at_start": True,
        "spectrum_at_end": False,
    },
    "monitor, profiled step": {"kss": False, "spectrum_every": 1},
}
#: Whose memory is measured.
MEASURED = CONTESTANTS | {"KSS, default": DEFAULT}
ACCUMULATE = {"gradient_accumulation_steps": 4}
ACCUMULATING = {
    "Trainer": CONTESTANTS["Trainer"] | ACCUMULATE,
    "KSS, default": DEFAULT | ACCUMULATE,
    "KSS, exact": DEFAULT | ACCUMULATE | {"kss_exact_accumulation": True},
}


class Clock(TrainerCallback):
    """Seconds of every step, callbacks of the trainer included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if state.global_step:
            self.seconds.append(now - self.start)
        self.start = now


class Tokens(torch.utils.data.Dataset):
    """Random tokens."""

    def __init__(self, count: int, length: int) -> None:
        self.ids = torch.randint(0, 1024, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def network(d: int, layers: int, length: int) -> GPT2LMHeadModel:
    """GPT-2 with a small vocabulary, so that the blocks and not the head take the time."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=layers, n_embd=d, n_head=max(d // 64, 1), vocab_size=1024, n_positions=length,
                   bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
    )  # fmt: skip


def train(name: str, settings: dict, model: GPT2LMHeadModel, batch: int, length: int, steps: int) -> list[float]:
    """Step times of one turn, without the first."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = RKSPTrainingArguments(
            output_dir=folder, use_cpu=True, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-5,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, run_report=False,
            dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        kind = Trainer if name == "Trainer" else RKSPTrainer
        data = Tokens(batch * steps * args.gradient_accumulation_steps, length)
        trainer = kind(model, args, train_dataset=data, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds[1:]


def paired(d: int, layers: int, batch: int, length: int, pairs: int) -> dict:
    """Steps without KSS and with it, in turns; ratios of each pair."""
    model = network(d, layers, length).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    kss = SpectralShaper(model, KSSConfig())
    ids = Tokens(batch, length).ids

    def step(shaped: bool) -> float:
        start = time.perf_counter()
        with kss if shaped else contextlib.nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
            (loss + kss.term() if shaped else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            if shaped:
                kss.step()
        return time.perf_counter() - start

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs + 1):
        for shaped in (False, True) if pair % 2 else (True, False):
            seconds[shaped].append(step(shaped))
    ratios = sorted(with_kss / plain - 1 for plain, with_kss in zip(seconds[False][1:], seconds[True][1:], strict=True))
    low, high = (int(stats.binom.ppf(q, pairs, 0.5)) for q in (0.025, 0.975))
    return {
        "pairs": pairs,
        "plain": statistics.median(seconds[False][1:]),
        "overhead": statistics.median(ratios),
        "interval": [ratios[low], ratios[min(high, pairs - 1)]],
        "acted": kss.pop_logs()["kss/layers_above"],
    }


def compare(contestants: dict, d: int, layers: int, batch: int, length: int, steps: int, turns: int) -> dict:
    """All contestants in turns."""
    model, seconds = network(d, layers, length), {name: [] for name in contestants}
    order = list(contestants)
    for turn in range(turns):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[name] += train(name, contestants[name], model, batch, length, steps)
    row = {
        "d": d,
        "layers": layers,
        "tokens": batch * length,
        "parameters": model.num_parameters(),
        "steps": steps * turns,
    }
    return row | {name: {"median": statistics.median(s), "mean": statistics.fmean(s)} for name, s in seconds.items()}


def memory(name: str) -> int:
    """Peak resident bytes of a process that trains three steps at d = 768, 12 layers."""
    command = [sys.executable, __file__, "--memory-of", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def overhead(row: dict, name: str, which: str) -> str:
    return f"{100 * (row[name][which] / row['Trainer'][which] - 1):+.1f}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=list(MEASURED), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.memory_of:
        train(args.memory_of, MEASURED[args.memory_of], network(768, 12, 128), 4, 128, 3)
        print(peak_memory())
        return
    rows = []
    print("step time of Trainer, and what is added to it (KSS, paper: of the means; all else: of the medians)")
    print(
        f"{'d':>5} {'layers':>6} {'tokens':>6} {'Trainer':>9} {'KSS [95% interval]':>22} {'paper':>8} {'monitor':>8} {'profile':>8}"
    )
    for size in QUICK if args.quick else SIZES:
        row = compare(CONTESTANTS, *size)
        row["KSS, default, paired"] = pair = paired(*size[:4], 20 if args.quick else PAIRS)
        rows.append(row)
        plain = row["Trainer"]["median"]
        added = [
            "{:+.1%} [{:+.1%}, {:+.1%}]".format(pair["overhead"], *pair["interval"]),
            overhead(row, "KSS, paper", "mean"),
            overhead(row, "monitor, between profiles", "median"),
        ]
        profile = row["monitor, profiled step"]["median"] - plain
        print(f"{row['d']:5d} {row['layers']:6d} {row['tokens']:6d} {1000 * plain:6.0f} ms", end=" ")
        print(f"{added[0]:>22}", *(f"{text:>8}" for text in added[1:]), f"{profile:6.2f} s", flush=True)
    result = {"machine": describe_machine(), "versions": versions(), "rows": rows}
    if not args.quick:
        row = result["accumulated"] = compare(ACCUMULATING, *ACCUMULATED)
        print(f"four batches of 512 tokens accumulated, d = 512, 4 layers: Trainer {1000 * row['Trainer']['median']:.0f} ms,",
              ", ".join(f"{name} {overhead(row, name, 'median')}" for name in ACCUMULATING if name != "Trainer"))  # fmt: skip
        result["peak_memory_bytes"] = {name: memory(name) for name in MEASURED}
        print("peak memory, d = 768, 12 layers, 512 tokens:",
              ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in result["peak_memory_bytes"].items()))  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
