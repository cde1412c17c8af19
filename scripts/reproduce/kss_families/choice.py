"""What ``kss="auto"`` decides for a run: on or off. The run itself is then that with KSS, or that without, to the bit."""

from __future__ import annotations

from typing import Any

import torch

from hf_rksp.capture import find_stacks
from hf_rksp.forecast import BATCHES, forecast
from hf_rksp.risk.plan import Plan
from hf_rksp.training.before import sentence
from hf_rksp.training.kss.auto import by_forecast, network_of, without_forecast

from .networks import FAMILIES, make
from .train import WARMUP, WEIGHT_DECAY

#: Schedule of a job -> of a plan.
_SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}


def decided(job: dict[str, Any]) -> dict[str, Any]:
    """Whether KSS acts, the probability of being lost if it was asked for, and the reason."""
    model: Any = make(job["family"], None, job["seed"])
    network = network_of(model, find_stacks(model))
    choice = without_forecast(network)
    if choice is None:
        generator = torch.Generator().manual_seed(10_000 + job["seed"])
        batches = [FAMILIES[job["family"]].task.batch(generator) for _ in range(BATCHES)]
        images = "pixel_values" in batches[0]
        plan = Plan(
            beta2=0.999, weight_decay=WEIGHT_DECAY, warmup=WARMUP, schedule=_SCHEDULES[job["schedule"]], steps=job["steps"],
            tokens=next(iter(batches[0].values())).numel(), objective="classification" if images else "causal",
        )  # fmt: skip
        choice = by_forecast(network, sentence(forecast(model, batches, plan, progress=False), job["lr"]))
    return {"on": choice.on, "p_lost": choice.values.get("p_lost"), "norm": network.norm, "reason": choice.text}
