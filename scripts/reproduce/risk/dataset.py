"""Rows of runs -> what the risk model is fitted to and scored on."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from hf_rksp.risk.plan import Plan
from scripts.reproduce.risk import finetune
from scripts.reproduce.risk.labels import LEAST, LOST, learnt, outcomes
from scripts.reproduce.risk.networks import TWINS
from scripts.reproduce.risk.tasks import objective_of

#: Runs are scored within this factor of their configuration's own lr*.
NEAR = 4.0
#: Families that are GPT-2 of transformers with another norm.
_GPT2 = ("preln", "rmsnorm", "subln", "postln", "deepnorm", "deepnorm-pre", "none")


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        family: of the network. group: of the families that are left out together.
        configuration: see `design.draw`.
        numbers: measured before step 0, the median over the seeds.
        plan: as `hf_rksp.risk` describes it.
        lr, lost: of each run. coarse: whether it is of the first stage. cause: "exploded" or "useless" or another outcome.
        edge: lr*, see `edge_of`; ``None`` if no run is lost, or every one is.
        learnt: what the best run learns, in nats.
        row: the row itself.
    """

    family: str
    group: int
    configuration: dict[str, Any]
    numbers: dict[str, float | None]
    plan: Plan
    lr: numpy.ndarray
    lost: numpy.ndarray
    coarse: numpy.ndarray
    cause: tuple[str, ...]
    edge: float | None
    learnt: float
    row: dict[str, Any]

    @property
    def architecture(self) -> str:
        """``model_type`` of transformers."""
        return "bert" if self.family == "minilm" else "gpt2" if self.family in _GPT2 else self.family

    @property
    def judged(self) -> bool:
        """Whether a run of it can be useful at all: else the configuration says nothing of learning rates that are too high."""
        return self.plan.start == "pretrained" or self.learnt >= LEAST

    @property
    def near(self) -> numpy.ndarray:
        """Which runs are scored."""
        if self.edge is None:
            return numpy.zeros(len(self.lr), bool)
        return numpy.abs(numpy.log2(self.lr / self.edge)) <= math.log2(NEAR)


def read(*paths: Path) -> list[Case]:
    """The configurations of results files that ran to their end."""
    return [case_of(row) for row in rows_of(*paths)]


def rows_of(*paths: Path) -> list[dict[str, Any]]:
    """The rows of the jobs that ran to their end."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [row for row in rows if row["status"] == "ok"]


def case_of(row: dict[str, Any]) -> Case:
    """One row."""
    configuration, runs = row["configuration"], row["runs"]
    found = outcomes(runs, configuration)
    measured = list(row["measured"].values())
    names = [name for name in measured[0] if not name.endswith("seconds")]
    numbers = {name: _median(one.get(name) for one in measured) for name in names}
    length, tokens = configuration["length"], configuration["sequences"] * configuration["length"]
    objective = objective_of(configuration)
    shares = {
        "causal": 1 - 1 / length,
        "masked": (1 + finetune.MASKED * (length - 1)) / length,
        "classification": 1 / length,
    }
    numbers["label_share"] = 1 / length if configuration["task"] == "recall" else shares[objective]
    numbers["lora"] = float(configuration.get("adaptation") == "lora")
    plan = Plan(
        optimizer=configuration["optimizer"],
        beta2=configuration["beta2"] or 0.999,
        weight_decay=configuration["decay"],
        warmup=configuration["warmup"],
        schedule="constant_with_warmup" if configuration["schedule"] == "constant" else configuration["schedule"],
        steps=configuration["steps"],
        clip=configuration["clip"],
        tokens=tokens,
        dtype=configuration["dtype"],
        objective=objective,
        start=configuration.get("start", "initialised"),
    )
    return Case(
        configuration["family"],
        next((place for place, group in enumerate(TWINS) if configuration["family"] in group), len(TWINS)),
        configuration,
        numbers,
        plan,
        lr := numpy.array([run["lr"] for run in runs]),
        lost := numpy.array([outcome in LOST for outcome in found]),
        numpy.array([run["seed"] == 0 for run in runs]),
        tuple(found),
        edge_of(lr, lost),
        learnt(runs, configuration),
        row,
    )


def edge_of(lr: numpy.ndarray, lost: numpy.ndarray) -> float | None:
    """lr*: the learning rate with the fewest lost runs below and surviving runs above it, over all seeds.

    If the outcomes are in order, it is the geometric mean of the last surviving and the first lost rate. If several places are
    equally good, it is the one in the middle.
    """
    order = numpy.argsort(lr, kind="stable")
    rates, failed = numpy.log2(lr[order]), lost[order]
    cuts = numpy.flatnonzero(numpy.diff(rates) > 0) + 1  # runs of one learning rate stay together
    if not failed.any() or failed.all() or not len(cuts):
        return None
    wrong = numpy.array([failed[:cut].sum() + (~failed[cut:]).sum() for cut in cuts])
    best = cuts[wrong == wrong.min()]
    cut = best[len(best) // 2]
    return float(2 ** ((rates[cut - 1] + rates[cut]) / 2))


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
