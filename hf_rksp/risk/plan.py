"""How a run is planned: what its owner decides, and no measurement can tell."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from hf_rksp.errors import InputError

Objective = Literal["causal", "masked", "classification"]
Start = Literal["initialised", "pretrained"]
#: Names of optimizers (of transformers' ``optim`` among them) -> family of the optimizer, as far as runs were made with it.
OPTIMIZERS = {
    "adamw": "adamw", "adam": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw", "muon": "muon",
}  # fmt: skip
#: transformers' ``lr_scheduler_type`` -> what becomes of the learning rate after warm-up.
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "cosine": "decays", "linear": "decays", "polynomial": "decays",
    "cosine_with_min_lr": "decays", "inverse_sqrt": "decays", "warmup_stable_decay": "constant",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes:
        optimizer: a name of `OPTIMIZERS`, or another one, for which nothing can be said.
        beta2: of Adam.
        weight_decay: decoupled.
        warmup: steps of linear warm-up.
        schedule: a name of `SCHEDULES`.
        steps: optimizer steps of the whole run.
        clip: largest gradient norm; ``None`` for none.
        tokens: tokens per optimizer step, over all processes and accumulated batches.
        dtype: of the computation: "float32", "bfloat16" or "float16".
        objective: what is learnt.
        start: random weights, or trained ones.

    Raises:
        InputError: a value that no run can have; the message names it.
    """

    optimizer: str = "adamw"
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "linear"
    steps: int = 1000
    clip: float | None = 1.0
    tokens: int = 512
    dtype: str = "float32"
    objective: Objective = "causal"
    start: Start = "initialised"

    def __post_init__(self) -> None:
        for name in ("steps", "tokens"):
            _whole(name, getattr(self, name), 1)
        _whole("warmup", self.warmup, 0)
        if self.warmup > self.steps:
            raise InputError(f"warmup={self.warmup}: the run has {self.steps} steps; pass a whole number up to that")
        if self.schedule == "constant" and self.warmup:
            raise InputError(
                f"warmup={self.warmup}: Trainer's schedule 'constant' has no warm-up; pass schedule='constant_with_warmup'"
            )
        if not 0 <= self.beta2 < 1:
            raise InputError(f"beta2={self.beta2!r}: pass a number from 0 to below 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay={self.weight_decay!r}: pass a finite number, 0 or above")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip!r}: pass a gradient norm above 0, or None for no clipping")
        for name, choices in (("dtype", ("float32", "bfloat16", "float16")), ("start", ("initialised", "pretrained")),
                              ("objective", ("causal", "masked", "classification")), ("schedule", tuple(SCHEDULES))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: choose among {', '.join(choices)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: pass a whole number of at least {least}")
