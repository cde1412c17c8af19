"""One run: a family, an arm, a learning rate, a schedule, a seed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .networks import FAMILIES, make
from .rules import EVERY, Doses, shaper_of
from .tasks import Task

WARMUP, WEIGHT_DECAY, LAST = 50, 0.01, 100
#: A run that has exploded ends; one whose task gradient was that large once was lost by its gradient, as in `kss_default`.
LOSS_LIMIT, GRADIENT_LIMIT = 50.0, 500.0


def train(job: dict[str, Any], arm: dict[str, Any], given: Doses | None = None) -> tuple[dict[str, Any], Doses]:
    """Train; the row says when the run was lost, the loss over the last steps, and the radii of the blocks.

    Args:
        given: see `shaper_of`.

    Returns:
        The row, and the strengths of the pushes.
    """
    steps, seed = job["steps"], job["seed"]
    task = FAMILIES[job["family"]].task
    model = make(job["family"], arm.get("embedding"), seed)
    shaper, rule = shaper_of(model, arm["kss"], seed, given)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["lr"], weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of(job["schedule"], step, steps))
    generator = torch.Generator().manual_seed(10_000 + seed)
    losses: list[float] = []
    largest, exploded, by_gradient = 0.0, None, None
    with shaper:
        for step in range(steps):
            rule.step = step
            batch = task.batch(generator)
            watched = arm["kss"] is not None or step < EVERY // 10 or step % EVERY == 0
            shaper.dormant = not watched
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            if arm["kss"] is not None and not norm < GRADIENT_LIMIT / 5:
                norm = task_gradient_norm(model, batch)
            value, largest = float(loss.detach()), max(largest, norm)
            if by_gradient is None and not norm <= GRADIENT_LIMIT:
                by_gradient = step
            if not (value <= LOSS_LIMIT and math.isfinite(norm)):
                exploded = step
                break
            losses.append(value)
            optimizer.step()
            schedule.step()
            shaper.step()
    final = mean(losses[-LAST:]) if exploded is None else None
    row = {
        "exploded": exploded,
        "lost_by_gradient": by_gradient,
        "loss": final,
        "held_out": held_out_loss(model, task) if exploded is None else None,
        "losses": [round(mean(losses[i : i + EVERY]), 4) for i in range(0, len(losses), EVERY)],
        "largest_gradient_norm": largest,
        "dropped": shaper.dropped,
        "skipped": shaper.aside.count,
        "acted": len(rule.doses),
        "record": {step: [[round(x, 4) for x in block] for block in blocks] for step, blocks in rule.record.items()},
    }
    return row, rule.doses


def task_gradient_norm(model: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Norm of the gradient without KSS, which evaluation mode keeps out; there is no dropout. The gradients of the step stay."""
    model.eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(model(**batch).loss, weights, allow_unused=True)
    model.train()
    return float(nn.utils.get_total_norm([one for one in gradients if one is not None]))


@torch.no_grad()
def held_out_loss(model: nn.Module, task: Task) -> float | None:
    """Mean loss on the held-out batches of a task; ``None`` if every batch of a run is new."""
    if task.held_out is None:
        return None
    model.eval()
    return mean([float(model(**batch).loss) for batch in task.held_out()])


def share_of(schedule: str, step: int, steps: int) -> float:
    """Of the peak learning rate: linear warm-up, then constant or a cosine to a tenth."""
    rise = min(1.0, (step + 1) / WARMUP)
    if schedule == "constant":
        return rise
    done = max(0, step - WARMUP) / (steps - WARMUP)
    return rise * (0.55 + 0.45 * math.cos(math.pi * done))


def mean(values: list[float]) -> float:
    """Mean of a list that is not empty."""
    return sum(values) / len(values)
