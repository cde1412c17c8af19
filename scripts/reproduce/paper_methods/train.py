"""One run of recall without a norm under a method, and what its step costs."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_rksp import KSSConfig, SpectralShaper
from scripts.reproduce import data
from scripts.reproduce.kss_default.tasks import BATCH, TASKS
from scripts.reproduce.kss_default.train import (
    GRADIENT_LIMIT,
    LAST,
    LOSS_LIMIT,
    WARMUP,
    WEIGHT_DECAY,
    mean,
    task_gradient_norm,
    task_loss,
)  # fmt: skip
from scripts.reproduce.spectra import means_of_blocks

from .methods import clip_queries_and_keys, optimizer_of, prepare
from .penalties import penalty_of

#: Sequences that a profile reads; the step of an early one, before which no run of section `choose` is lost; steps of a turn whose
#: time is taken: the paper's KSS and the penalties act in one of ten.
_PROFILE, _EARLY, _TURN = 256, 25, 10


class Run(contextlib.AbstractContextManager["Run"]):
    """A network, its optimizer and its batches; `step` trains once.

    Args:
        method: of config.yaml.
        lr: peak learning rate.
        clip: limit of the gradient norm; ``None`` is no clipping.
        seed: of the network and of the batches.
    """

    def __init__(self, method: Mapping[str, Any], lr: float, clip: float | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.method, self.clip, self.steps = method, clip, 0
        self.draw = torch.Generator().manual_seed(20_000 + seed)
        self.model: Any = TASKS["recall"].network().train()
        prepare(self.model, method, self.draw)
        kss = method.get("kss")
        self.shaper = None if kss is None else SpectralShaper(self.model, KSSConfig(**kss, seed=seed))
        self.optimizer: Any = optimizer_of(self.model, method, lr, WEIGHT_DECAY)
        rise = method.get("warmup", WARMUP)
        # The optimizer within SAM is the one whose steps the schedule has to see.
        moved = getattr(self.optimizer, "base_optimizer", self.optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(moved, lambda step: min(1, (step + 1) / rise))
        self.batches = torch.Generator().manual_seed(10_000 + seed)

    def __enter__(self) -> Run:
        if self.shaper:
            self.shaper.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.shaper:
            self.shaper.__exit__(*error)

    def step(self) -> tuple[float, float, float]:
        """Loss, norm of the task's gradient, and share of right answers; the weights move if the first two are within limits."""
        batch = data.recall(self.batches, BATCH)
        loss, hits = self._backward(*batch)
        norm = float(nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        if (self.shaper or "penalty" in self.method) and not norm < GRADIENT_LIMIT / 5:
            norm = task_gradient_norm(self.model, *batch)
        if not (loss <= LOSS_LIMIT and math.isfinite(norm)):
            return loss, norm, hits
        if "rho" in self.method:
            self.optimizer.first_step(zero_grad=True)
            self._backward(*batch)
            self._clip()
            self.optimizer.second_step()
        else:
            self._clip()
            self.optimizer.step()
        self.schedule.step()
        if "qk_clip" in self.method:
            clip_queries_and_keys(self.model, self.method["qk_clip"])
        if self.shaper:
            self.shaper.step()
        self.steps += 1
        return loss, norm, hits

    def _backward(self, ids: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        self.optimizer.zero_grad()
        output = self.model(input_ids=ids, output_hidden_states="penalty" in self.method)
        loss = task_loss(output.logits, labels)
        total = loss + self.shaper.term() if self.shaper else loss
        asked = labels[:, 1:] != -100
        logits = output.logits[:, :-1][asked]
        extra = penalty_of(self.method, self.steps, loss, logits, output.hidden_states, self.draw)
        (total if extra is None else total + extra).backward()
        return float(loss.detach()), float((logits.argmax(-1) == labels[:, 1:][asked]).double().mean())

    def _clip(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)


def train(method: Mapping[str, Any], lr: float, clip: float | None, seed: int, steps: int) -> dict[str, Any]:
    """Train; the row says when the run was lost, if it was, and what it had learnt.

    It also has the near-unit mass at first, at an early step and at the end (or before the step at which it was lost), and how
    often KSS left a layer out.
    """
    lost: dict[str, int | None] = {"loss": None, "gradient": None}
    losses, right, largest = [], [], 0.0
    with Run(method, lr, clip, seed) as run:
        first, early = near_unit_mass(run.model), None
        for step in range(steps):
            if step == _EARLY:
                early = near_unit_mass(run.model)
            loss, norm, hits = run.step()
            largest = max(largest, norm)
            if lost["gradient"] is None and not norm <= GRADIENT_LIMIT:
                lost["gradient"] = step
            if not (loss <= LOSS_LIMIT and math.isfinite(norm)):
                lost["loss"] = step
                break
            losses.append(loss)
            right.append(hits)
        ended = lost["loss"] is None
        last = near_unit_mass(run.model)
        skipped = run.shaper.aside.count if run.shaper else 0
    return {
        "lost_by_loss": lost["loss"],
        "lost_by_gradient": lost["gradient"],
        "loss": mean(losses[-LAST:]) if ended else None,
        "accuracy": mean(right[-LAST:]) if ended else None,
        "largest_gradient_norm": largest,
        "near_unit_mass": [first, early, last],
        "skipped": skipped,
    }


def near_unit_mass(model: nn.Module) -> float | None:
    """Mean over the blocks, on sequences that no run is trained on; ``None`` if there are none that can be read."""
    ids, _ = data.recall(torch.Generator().manual_seed(1), _PROFILE)
    found = means_of_blocks(model, {"input_ids": ids})
    return None if found is None else found["near_unit_mass"]


def cost(
    method: Mapping[str, Any],
    plain: Mapping[str, Any],
    lr: float,
    seed: int,
    pairs: int,
    plain_clip: float | None,
) -> dict[str, Any]:
    """Median time of a step with the method and clipping at 1 over that of a plain one, from turns of a few steps of each.

    Args:
        plain_clip: limit of the gradient norm of the plain run.

    Raises:
        RuntimeError: a run was lost on the way, and its last steps were none.
    """
    ratios = []
    with Run(method, lr, 1.0, seed) as one, Run(plain, lr, plain_clip, seed) as other:
        for pair in range(pairs + 1):
            times = {}
            for run in (one, other) if pair % 2 else (other, one):
                begin = time.perf_counter()
                for _ in range(_TURN):
                    run.step()
                times[run] = time.perf_counter() - begin
            ratios.append(times[one] / times[other])
        for run in (one, other):
            if run.steps < (pairs + 1) * _TURN:
                raise RuntimeError(f"a run ended at step {run.steps}: choose a lower learning rate")
    return {"ratio": statistics.median(ratios[1:]), "ratios": [round(ratio, 4) for ratio in ratios[1:]]}
