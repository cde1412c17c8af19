"""Runs that fail in five ways, and controls of the same size, learning rate and schedule: which signal warns first?"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_rksp import TrainingRun
from hf_rksp.history.read import read_history
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.watched import groups_of

from .events import failure
from .faults import WAYS, Fault
from .rivals import Rivals
from .signals import Own, monitors, series
from .tables import tables

__all__ = ["check", "run", "tables"]

#: A run ends at a loss above this.
_MOST_LOSS = 50.0


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and every way."""
    wikitext_file("test")
    if unknown := {job["way"] for job in jobs} - WAYS.keys():
        raise ValueError(f"way {', '.join(unknown)}: choose among {', '.join(WAYS)}")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run under all monitors: its losses, the step of its failure, and every signal at every reading."""
    way, own_settings = WAYS[job["way"]], settings["ways"][job["way"]]
    of_run = settings | own_settings
    model = way.network(of_run, job["seed"]).train()
    begin = of_run["begin"] + job["seed"] % of_run["spread"]
    fault = (way.fault if job["fault"] else Fault)(of_run, begin)
    fault.prepare(model)
    optimizer = torch.optim.AdamW(groups_of(model, of_run["decay"]), lr=of_run["lr"], betas=(0.9, of_run["beta2"]))
    generator = torch.Generator().manual_seed(10_000 + job["seed"])
    parts = monitors(of_run["every"], of_run["every_curvature"]) if job.get("signals", True) else []
    losses: list[float] = []
    norms: list[float] = []
    own, rivals = Own(model, optimizer), Rivals()
    with tempfile.TemporaryDirectory() as folder:
        with TrainingRun(model, folder, of_run["steps"], parts, optimizer=optimizer) as watched:
            for step in range(of_run["steps"]):
                ids, labels = fault.batch(step, *way.batch(generator, of_run))
                lr = of_run["lr"] * share_of(step, of_run)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                losses.append(float(loss.detach()))
                each = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
                norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), of_run["clip"] or math.inf)))
                rivals.step(step, losses[-1], norms[-1], each)
                if not losses[-1] <= _MOST_LOSS or not math.isfinite(norms[-1]):
                    losses[-1] = math.inf
                    break
                if parts and step % of_run["every"] == 0:
                    own.read(step, ids, labels, losses[-1], lr, step % of_run["every_curvature"] == 0)
                optimizer.step()
                optimizer.zero_grad()
                fault.after(step, model, optimizer)
                watched.step()
        found = series(read_history(Path(folder)), own, losses, norms, of_run["every"]) if parts else {}
    return {
        "begin": begin if job["fault"] else None,
        "planned": of_run["steps"],
        "steps": len(losses),
        "failure": failure(losses),
        "exploded": not math.isfinite(losses[-1]),
        "losses": [None if not math.isfinite(loss) else round(loss, 3) for loss in losses[:: of_run["every"]]],
        "signals": found,
        "rivals": rivals.alarms,
    }


def share_of(step: int, settings: dict[str, Any]) -> float:
    """Of the peak learning rate: linear warm-up, then a cosine to a tenth."""
    rise = min(1.0, (step + 1) / settings["warmup"])
    if settings["schedule"] == "constant":
        return rise
    return rise * (0.55 + 0.45 * math.cos(math.pi * step / settings["steps"]))
