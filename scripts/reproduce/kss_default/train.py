"""One run: a task, an arm, a learning rate, a seed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn

from hf_rksp import KSSConfig

from .tasks import TASKS
from .variants import shaper_of

WARMUP, WEIGHT_DECAY, LAST = 50, 0.01, 100
#: A run is lost at the first step with a task loss above the one, or a gradient norm of the task above the other.
LOSS_LIMIT, GRADIENT_LIMIT = 50.0, 500.0


def train(
    task: str, lr: float, seed: int, steps: int, clip: float | None, kss: dict[str, Any] | None
) -> dict[str, Any]:
    """Train; the row says when the run was lost, if it was, the task's loss at the end, and how many layers KSS left out."""
    torch.manual_seed(seed)
    model = TASKS[task].network().train()
    shaper = None
    if kss is not None:
        settings = {name: value for name, value in kss.items() if name != "variant"}
        shaper = shaper_of(kss.get("variant"), model, KSSConfig(**settings, seed=seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARMUP))
    generator = torch.Generator().manual_seed(10_000 + seed)
    losses, hits, largest = [], [], 0.0
    lost: dict[str, int | None] = {"loss": None, "gradient": None}
    with shaper or contextlib.nullcontext():
        for step in range(steps):
            ids, labels = TASKS[task].batch(generator)
            output = model(input_ids=ids)
            loss = task_loss(output.logits, labels)
            total = loss + shaper.term() if shaper else loss
            optimizer.zero_grad()
            total.backward()
            norm = gradient_norm(model)
            if shaper and not norm < GRADIENT_LIMIT / 5:
                norm = task_gradient_norm(model, ids, labels)
            value = loss.item()
            largest = max(largest, norm)
            if lost["gradient"] is None and not norm <= GRADIENT_LIMIT:
                lost["gradient"] = step
            if not (value <= LOSS_LIMIT and math.isfinite(norm)):
                lost["loss"] = step
                break
            losses.append(value)
            seen = labels[:, 1:] != -100
            hits.append(float((output.logits[:, :-1].argmax(-1) == labels[:, 1:])[seen].double().mean()))
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            if shaper:
                shaper.step()
    ended = lost["loss"] is None
    return {
        "lost_by_loss": lost["loss"],
        "lost_by_gradient": lost["gradient"],
        "loss": mean(losses[-LAST:]) if ended else None,
        "accuracy": mean(hits[-LAST:]) if ended else None,
        "best_loss": min((mean(losses[i : i + LAST]) for i in range(0, len(losses) - LAST + 1, LAST)), default=None),
        "largest_gradient_norm": largest,
        "dropped": shaper.dropped if shaper else 0,
        "skipped": shaper.state_dict()["skipped"] if shaper else 0,
    }


def task_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token, over the positions that have a label."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def gradient_norm(model: nn.Module) -> float:
    """Norm of the gradient over all parameters."""
    return float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def task_gradient_norm(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """The same without KSS: labels rest on the task alone. Evaluation mode keeps KSS out; there is no dropout."""
    model.eval()
    loss = task_loss(model(input_ids=ids).logits, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    model.train()
    return float(nn.utils.get_total_norm([g for g in gradients if g is not None]))


def mean(values: list[float]) -> float:
    """Mean of a list that is not empty."""
    return sum(values) / len(values)
