"""Search for a KSS setting that stabilises AND learns: associative recall, no normalisation, AdamW.

    python scripts/reproduce/kss_default/explore.py --seeds 100 101 --lrs 0.003 --steps 1000

Every finished run is one line of explore.jsonl; runs that are there already are skipped, so it can be stopped and resumed.
A run is lost at the first step with a task loss above 50, a task gradient norm above 500, or either not finite. Seeds from 100 on
are for choosing; reported figures use others.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp.config import KSSConfig
from hf_rksp.spectral.shaping import leading_directions, projected_sums, shaping_operator, shaping_penalty

VOCAB, LENGTH, PAIRS, BATCH, WARMUP = 32, 16, 2, 32, 50

#: name -> penalty ("paper": Eq. 14; "hinge": sum of squared excess above tau_u), weight, bound (times the norm of the task
#: gradient at the same hidden state), centred, rank, clip (of the whole gradient).
VARIANTS = {
    "plain": {},
    "clip 1": {"clip": 1.0},
    "paper": {"penalty": "paper", "weight": 15.0, "bound": 1.0},
    "hinge": {"penalty": "hinge", "weight": 100.0, "bound": 1.0},
    "hinge, mean kept": {"penalty": "hinge", "weight": 100.0, "bound": 1.0, "centred": False},
    "hinge, mean kept, bound 3": {"penalty": "hinge", "weight": 100.0, "bound": 3.0, "centred": False},
    "paper + clip 1": {"penalty": "paper", "weight": 15.0, "bound": 1.0, "clip": 1.0},
    "hinge + clip 1": {"penalty": "hinge", "weight": 100.0, "bound": 1.0, "clip": 1.0},
    "hinge, mean kept + clip 1": {"penalty": "hinge", "weight": 100.0, "bound": 1.0, "centred": False, "clip": 1.0},
    "hinge, mean kept, rank 128 + clip 1": {
        "penalty": "hinge", "weight": 100.0, "bound": 1.0, "centred": False, "rank": 128, "clip": 1.0,
    },
}  # fmt: skip


def task(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``[k1 v1 k2 v2 0 ... 0 query]`` and the value of the query. Keys are 1 to 15, values 16 to 31; chance is ln 16 = 2.77."""
    keys = torch.stack([torch.randperm(15, generator=generator)[:PAIRS] + 1 for _ in range(BATCH)])
    values = torch.randint(16, 32, (BATCH, PAIRS), generator=generator)
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    ids[:, 0 : 2 * PAIRS : 2], ids[:, 1 : 2 * PAIRS : 2] = keys, values
    rows, query = torch.arange(BATCH), torch.randint(0, PAIRS, (BATCH,), generator=generator)
    ids[:, -1] = keys[rows, query]
    return ids, values[rows, query]


def network(seed: int) -> GPT2LMHeadModel:
    """GPT-2, d = 128, 4 layers, 4 heads, without any normalisation."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=4, n_embd=128, n_head=4, vocab_size=VOCAB, n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
    return model


class Shaping:
    """The penalty's gradient at each block's input and output, bounded there against the task's."""

    def __init__(self, blocks, penalty, weight, bound, centred=True, rank=32, seed=0):
        self.config = KSSConfig(rank=rank, centred=centred)
        self.penalty, self.weight, self.bound = penalty, weight / len(blocks), bound
        self.generator = torch.Generator().manual_seed(seed)
        for block in blocks:
            block.register_forward_hook(self.after)

    def after(self, module, args, output):
        x, y = args[0], output if torch.is_tensor(output) else output[0]
        gradients = self.gradients(x.detach().flatten(0, -2), y.detach().flatten(0, -2))
        for state, gradient in zip((x, y), gradients or (), strict=False):
            if state.requires_grad:
                state.register_hook(functools.partial(self.add, extra=gradient.reshape(state.shape)))

    def add(self, task, extra):
        extra = self.weight * extra
        size, limit = extra.norm(), self.bound * task.norm()
        return task + extra * torch.clamp(limit / size, max=1.0) if torch.isfinite(size + limit) and size > 0 else task

    def gradients(self, x, y):
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            return None
        directions = leading_directions(x, self.config.rank, self.generator, self.config.centred)
        x, y = x.requires_grad_(), y.requires_grad_()
        with torch.enable_grad():
            eigenvalues = torch.linalg.eigvals(shaping_operator(projected_sums(x, y, directions), self.config))
            if self.penalty == "paper":
                value = shaping_penalty(eigenvalues, self.config)
            else:
                value = torch.relu(eigenvalues.abs() - self.config.upper_threshold).square().sum()
            return torch.autograd.grad(value, (x, y)) if float(value) > 0 else None


def run(seed: int, lr: float, steps: int, clip: float | None = None, **shaping) -> dict:
    model = network(seed).train()
    if shaping:
        Shaping(list(model.transformer.h), **shaping)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARMUP))
    generator = torch.Generator().manual_seed(1000 + seed)
    losses, hits, lost = [], [], None
    for step in range(steps):
        ids, label = task(generator)
        logits = model(ids, use_cache=False).logits[:, -1]
        loss = nn.functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
        value = loss.item()
        # With shaping the gradient is not the task's alone, so a run is called lost by its loss, or when nothing is finite.
        if not math.isfinite(value + norm) or value > 50 or (not shaping and norm > 500):
            lost = step
            break
        losses.append(value)
        hits.append(float((logits.argmax(-1) == label).double().mean()))
        optimizer.step()
        schedule.step()
    last = slice(-100, None)
    mean = {"loss": sum(losses[last]) / len(losses[last]), "accuracy": sum(hits[last]) / len(hits[last])}
    return {"lost": lost} | (mean if lost is None else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--lrs", nargs="+", type=float, default=[0.001, 0.002, 0.003, 0.004])
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("explore.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(row["variant"], row["lr"], row["seed"], row["steps"]) for row in rows}
    for seed in args.seeds:
        for lr in args.lrs:
            for name in args.variants:
                if (name, lr, seed, args.steps) in done:
                    continue
                start = time.perf_counter()
                row = {"variant": name, "lr": lr, "seed": seed, "steps": args.steps} | run(
                    seed, lr, args.steps, **VARIANTS[name]
                )
                row["seconds"] = round(time.perf_counter() - start, 1)
                with args.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
