"""Runs that fail in five ways, and controls of the same size, learning rate and schedule: which signal warns first?"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_rksp import TrainingRun
from hf_rksp.history.read import History, read_history
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.watched import groups_of

from .events import failure
from .faults import WAYS, Fault
from .own import Own
from .signals import kept, monitors
from .tables import tables
from .tools import PACKAGES, Tools

__all__ = ["check", "run", "tables"]

#: A run ends at a loss above this.
_MOST_LOSS = 50.0


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and every way; the other tools too, for a row without them cannot be compared."""
    wikitext_file("test")
    if unknown := {job["way"] for job in jobs} - WAYS.keys():
        raise ValueError(f"way {', '.join(unknown)}: choose among {', '.join(WAYS)}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and any(job.get("watched", True) for job in jobs):
        raise ValueError(
            f"{', '.join(missing)} not installed: {' '.join(PACKAGES[name] for name in missing)}; see README.md"
        )


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run under all monitors: its losses, the step of its failure, and every signal at every reading.

    With ``watched`` false there are no monitors. They do not change a run.
    """
    way = WAYS[job["way"]]
    of_run = settings | settings["ways"][job["way"]]
    has_fault = job["fault"] and way.fault is not Fault
    begin = of_run["begin"] + 7 * job["seed"] % of_run["spread"] if has_fault else math.inf
    model = way.network(of_run, job["seed"]).train()
    fault = way.fault(of_run, begin)
    fault.prepare(model)
    optimizer = torch.optim.AdamW(groups_of(model, of_run["decay"]), lr=of_run["lr"], betas=(0.9, of_run["beta2"]))
    generator = torch.Generator().manual_seed(10_000 + job["seed"])
    parts = monitors(of_run["every"], of_run["every_curvature"]) if job.get("watched", True) else []
    losses: list[float] = []
    norms: list[float] = []
    own, tools = Own(model, optimizer), Tools() if parts else None
    with tempfile.TemporaryDirectory() as folder:
        with TrainingRun(model, folder, of_run["steps"], parts, optimizer=optimizer) as watched:
            for step in range(of_run["steps"]):
                fault.before(step, optimizer)
                ids, labels = fault.batch(step, *way.batch(generator, of_run))
                lr = of_run["lr"] * share_of(step, of_run)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                losses.append(float(loss.detach()))
                each = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
                norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), of_run["clip"] or math.inf)))
                if tools:
                    tools.step(step, losses[-1], norms[-1], each)
                if not losses[-1] <= _MOST_LOSS or not math.isfinite(norms[-1]):
                    losses[-1] = math.inf
                    break
                if parts and step % of_run["every"] == 0:
                    own.read(step, ids, labels, losses[-1], lr, step % of_run["every_curvature"] == 0)
                optimizer.step()
                optimizer.zero_grad()
                fault.after(step, model, optimizer)
                watched.step()
        history = read_history(Path(folder)) if parts else None
        found = kept(history, own.found, len(losses), of_run["every"]) if history else {}
    return {
        "begin": begin if has_fault else None,
        "planned": of_run["steps"],
        "failure": failure(losses),
        "losses": [_short(loss) for loss in losses],
        "norms": [_short(norm) for norm in norms],
        "signals": found,
        "alarms": _alarms(history) if history else [],
        "tools": tools.alarms if tools else {},
    }


def _alarms(history: History) -> list[list[Any]]:
    """The alarms that the monitors of the package raise by their defaults: step, monitor, rule."""
    return [[row["step"], row["by"], row["rule"]] for row in history.events if row["what"] == "alarm"]


def _short(value: float) -> float | None:
    """To four digits; ``None`` if it is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def share_of(step: int, settings: dict[str, Any]) -> float:
    """Of the peak learning rate: linear warm-up, then a cosine to a tenth."""
    rise = min(1.0, (step + 1) / settings["warmup"])
    if settings["schedule"] == "constant":
        return rise
    return rise * (0.55 + 0.45 * math.cos(math.pi * step / settings["steps"]))
