"""A small network trained on bytes of WikiText-103 under monitors, and when it fails: what several experiments do."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from hf_rksp import TrainingRun
from hf_rksp.history.read import History, read_history
from hf_rksp.training.monitors.base import Monitor
from scripts.reproduce.risk.ensemble import MOST_LOSS, MOST_NORM
from scripts.reproduce.risk.networks import FAMILIES, make
from scripts.reproduce.risk.tasks import TASKS, batch

#: A spike: the mean loss between two readings lies so many nats above the lowest one before.
SPIKE = 0.5


@dataclass(frozen=True)
class Course:
    """Loss and gradient norm of each step, the step of an explosion, and the history of the run."""

    losses: list[float]
    norms: list[float]
    exploded: int | None
    history: History

    def final(self, last: int) -> float | None:
        """Mean loss of the last steps; ``None`` after an explosion."""
        return None if self.exploded is not None else float(numpy.mean(self.losses[-last:]))

    def means(self, every: int) -> list[float]:
        """Mean loss between two readings."""
        return [float(numpy.mean(self.losses[i : i + every])) for i in range(0, len(self.losses), every)]


def groups_of(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights for AdamW: matrices decay, and vectors do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def train(settings: Mapping[str, Any], monitors: Sequence[Monitor], clip: float) -> Course:
    """AdamW with a warm-up times a cosine to zero; the run ends at an explosion.

    Args:
        settings: family, width, layers, heads, std, length, sequences, steps, warmup, lr, beta2, decay, seed.
        monitors: what watches.
        clip: largest gradient norm; infinity for none.
    """
    shape = {name: settings[name] for name in ("width", "layers", "heads", "std", "length")}
    shape |= {"vocabulary": TASKS["text"].vocabulary}
    model = make(FAMILIES[settings["family"]], shape, settings["seed"]).train()
    optimizer = torch.optim.AdamW(
        groups_of(model, settings["decay"]), lr=settings["lr"], betas=(0.9, settings["beta2"])
    )
    steps, losses, norms, exploded = settings["steps"], [], [], None
    with tempfile.TemporaryDirectory() as folder:
        with TrainingRun(model, folder, steps, monitors, optimizer=optimizer) as watched:
            for step in range(steps):
                ids, labels = batch("text", settings["seed"], step, settings["sequences"], settings["length"])
                share = min((step + 1) / settings["warmup"], 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = settings["lr"] * share
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
                losses.append(float(loss.detach()))
                norms.append(norm)
                if not (losses[-1] <= MOST_LOSS and norm <= MOST_NORM):
                    exploded = step
                    break
                optimizer.step()
                optimizer.zero_grad()
                watched.step()
        return Course(losses, norms, exploded, read_history(Path(folder)))


def failure(losses: Sequence[float | None], every: int, exploded: int | None) -> int | None:
    """The step at which a run fails: its first spike, or its explosion; ``None`` if there is none.

    Args:
        losses: means between readings; ``None`` for what was not finite.
        every: steps from one reading to the next.
        exploded: the step of an explosion.
    """
    lowest = math.inf
    for place, loss in enumerate(losses):
        if loss is None or not loss <= lowest + SPIKE:
            return place * every
        lowest = min(lowest, loss)
    return exploded
