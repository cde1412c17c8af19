"""One network trained in several ways at learning rates that are too high for it: what keeps the run, and what does that cost?"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hf_rksp import DepthWarmup, DepthWarmupConfig, KSSConfig, TrainingRun
from scripts.reproduce.data import passages, wikitext, wikitext_file
from scripts.reproduce.harness.intervals import paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.risk.ensemble import MOST_LOSS, MOST_NORM
from scripts.reproduce.risk.networks import gated, modern
from scripts.reproduce.watched import groups_of

from .attention import Watched, clip_queries_and_keys

#: A run that ends no better than a table of byte pairs has learnt nothing that needs a network.
PAIRS = 2.317
#: Steps whose losses are the final one.
_LAST = 50
_HELD_OUT = 16


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and every arm."""
    wikitext_file("validation")
    wikitext_file("test")
    if unknown := {job["arm"] for job in jobs} - settings["arms"].keys():
        raise ValueError(f"settings.arms has no {', '.join(sorted(unknown))}")


def network(settings: dict[str, Any], arm: dict[str, Any], seed: int) -> nn.Module:
    """LLaMA, or Qwen3, which is LLaMA with a norm on queries and keys."""
    torch.manual_seed(seed)
    shape = {name: settings[name] for name in ("width", "layers", "heads", "std", "length")} | {"vocabulary": 256}
    sizes = modern(shape) | {"intermediate_size": gated(shape)}
    if arm.get("network") == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=settings["width"] // settings["heads"]))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train; loss, loss on held-out text over the steps, relative FLOPs, seconds per step, and when the run was lost."""
    settings = settings | job
    arm, steps = settings["arms"][job["arm"]], settings["steps"]
    model = network(settings, arm, job["seed"]).train()
    optimizer = torch.optim.AdamW(groups_of(model, settings["decay"]), lr=job["lr"], betas=(0.9, settings["beta2"]))
    parts = []
    if "depth" in arm:
        config = {"schedule": "paper", "groups": settings["groups"], "begin": settings["warmup"]} | arm["depth"]
        parts.append(DepthWarmup(DepthWarmupConfig(**config)))
    warmup = arm.get("warmup", settings["warmup"])
    draw = torch.Generator().manual_seed(10_000 + job["seed"])
    held_out = passages(wikitext("validation"), torch.Generator().manual_seed(1), _HELD_OUT, settings["length"])
    losses, curve, seconds, flops, exploded = [], [], [], 0.0, None
    watched = Watched(model, arm.get("soft_cap"))
    kss = KSSConfig(seed=job["seed"]) if arm.get("kss") else None
    with tempfile.TemporaryDirectory() as folder, watched:
        with TrainingRun(model, folder, steps, parts, kss, optimizer=optimizer) as loop:
            for step in range(steps):
                ids = passages(wikitext("test"), draw, settings["sequences"], settings["length"])
                rise = min((step + 1) / warmup, 1.0) if warmup else 1.0
                for group in optimizer.param_groups:
                    group["lr"] = job["lr"] * rise * (1 - max(step - warmup, 0) / (steps - warmup))
                start = time.perf_counter()
                loss, extra = objective(model, ids, arm.get("z_loss", 0.0))
                (loss + extra + loop.term()).backward()
                loop.gradients_ready()
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings["clip"]))
                losses.append(float(loss.detach()))
                active = parts[0].active if parts else settings["layers"]
                flops += active / settings["layers"]
                if not (losses[-1] <= MOST_LOSS and norm <= MOST_NORM):
                    exploded = step
                    break
                optimizer.step()
                optimizer.zero_grad()
                if arm.get("qk_clip"):
                    clip_queries_and_keys(model, watched.largest(), arm["qk_clip"])
                loop.step()
                seconds.append(time.perf_counter() - start)
                if (step + 1) % settings["evaluate_every"] == 0:
                    curve.append([step + 1, round(flops, 2), evaluated(model, held_out)])
    ended = exploded is None
    return {
        "exploded": exploded,
        "final": float(numpy.mean(losses[-_LAST:])) if ended else None,
        "held_out": curve[-1][2] if ended else None,
        "curve": curve,
        "loss": [round(float(numpy.mean(losses[i : i + 10])), 4) for i in range(0, len(losses), 10)],
        "step_seconds": round(statistics.median(seconds), 4) if seconds else None,
    }


def objective(model: nn.Module, ids: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of the next byte, and the z-loss (Chowdhery et al., arXiv:2204.02311)."""
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    return loss, z_loss * logits.logsumexp(-1).square().mean() if z_loss else torch.zeros(())


@torch.no_grad()
def evaluated(model: nn.Module, ids: Tensor) -> float:
    """Loss on held-out text."""
    model.eval()
    loss = float(objective(model, ids, 0.0)[0])
    model.train()
    return round(loss, 4)


def lost(row: dict[str, Any]) -> bool:
    """Exploded, or no better than a table of byte pairs."""
    return row["exploded"] is not None or not row["final"] <= PAIRS


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Per learning rate a row for each arm: lost runs, held-out loss beside the baseline's, at equal steps and at equal FLOPs."""
    if "steps" in rows[0]:
        return _overhead(rows)
    lines: list[str] = []
    by_lr = sorted(rows, key=lambda row: row["lr"])
    for lr, group in groupby(by_lr, key=lambda row: row["lr"]):
        runs = list(group)
        base = {row["seed"]: row for row in runs if row["arm"] == "baseline"}
        found = []
        for arm in dict.fromkeys(row["arm"] for row in runs):
            mine = {row["seed"]: row for row in runs if row["arm"] == arm}
            count = sum(map(lost, mine.values()))
            estimate = share(count, len(mine))
            whole = [row["held_out"] for row in mine.values() if not lost(row)]
            found.append(
                [
                    arm, f"{count} of {len(mine)} [{estimate.low:.0%}, {estimate.high:.0%}]",
                    f"{statistics.fmean(whole):.3f}" if whole else "-",
                    _beside(base, mine, _last), _beside(base, mine, _at_flops(mine)),
                    f"{_flops(mine):.0%}",
                ]
            )  # fmt: skip
        lines += [f"Learning rate {lr:g}:", "", *table(_HEADS, found), ""]
    return "\n".join(lines).rstrip() + "\n"


_HEADS = [
    "arm", "lost [95% interval]", "held-out loss of the others", "minus baseline, equal steps", "minus baseline, equal FLOPs",
    "FLOPs of blocks",
]  # fmt: skip


def _overhead(rows: list[dict[str, Any]]) -> str:
    """Median time of a step by arm, over runs that were made one after the other."""
    times: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        times.setdefault(row["arm"], []).append(row["step_seconds"])
    base = times.get("baseline")
    lines = [
        [
            arm, ", ".join(f"{1e3 * value:.1f}" for value in found),
            f"{statistics.median(found) / statistics.median(base) - 1:+.0%}" if base else "-",
        ]
        for arm, found in times.items()
    ]  # fmt: skip
    return "\n".join(table(["arm", "median step in ms, by run", "minus baseline"], lines)) + "\n"


def _flops(runs: dict[int, dict[str, Any]]) -> float:
    """Share of the block updates of a whole network, if locked blocks cost nothing."""
    shares = [row["curve"][-1][1] / row["curve"][-1][0] for row in runs.values() if row["curve"]]
    return statistics.fmean(shares) if shares else math.nan


def _last(row: dict[str, Any]) -> float:
    return float(row["held_out"])


def _at_flops(mine: dict[int, dict[str, Any]]) -> Any:
    """Held-out loss of a run when it has spent what the runs ``mine`` have spent at their end."""
    ends = [row["curve"][-1][1] for row in mine.values() if not lost(row)]
    spent = statistics.fmean(ends) if ends else math.nan

    def at(row: dict[str, Any]) -> float:
        return float(numpy.interp(spent, [one[1] for one in row["curve"]], [one[2] for one in row["curve"]]))

    return at


def _beside(base: dict[int, dict[str, Any]], mine: dict[int, dict[str, Any]], value: Any) -> str:
    """Mean difference of seeds that neither lost, with its 95% interval."""
    seeds: Sequence[int] = [seed for seed in mine if seed in base and not lost(mine[seed]) and not lost(base[seed])]
    if len(seeds) < 3 or mine == base:
        return "-"
    found = paired({seed: _last(mine[seed]) for seed in seeds}, {seed: value(base[seed]) for seed in seeds})
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] (n={found.count})"
