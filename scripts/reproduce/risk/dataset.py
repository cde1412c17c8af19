"""Rows of runs -> what the risk model is fitted to and scored on."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from hf_rksp.risk.features import FEATURES
from hf_rksp.risk.fit import Outcomes
from hf_rksp.risk.plan import Plan
from scripts.reproduce.risk.labels import LOST, outcomes
from scripts.reproduce.risk.networks import TWINS

#: Runs are scored within this factor of their configuration's own lr*.
NEAR = 4.0


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        family: of the network. group: of the families that are left out together.
        configuration: see `design.draw`.
        numbers: measured before step 0, the median over the seeds.
        plan: as `hf_rksp.risk` describes it.
        lr, lost: of each run. coarse: whether it is of the first stage. cause: "exploded" or "useless" or another outcome.
        edge: lr*, ``None`` if no run is lost at any learning rate.
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

    @property
    def near(self) -> numpy.ndarray:
        """Which runs are scored."""
        if self.edge is None:
            return numpy.zeros(len(self.lr), bool)
        return numpy.abs(numpy.log2(self.lr / self.edge)) <= math.log2(NEAR)


def read(path: Path) -> list[Case]:
    """The configurations of a results file that ran to their end."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [case_of(row) for row in rows if row["status"] == "ok"]


def case_of(row: dict[str, Any]) -> Case:
    """One row."""
    configuration, runs = row["configuration"], row["runs"]
    found = outcomes(runs, configuration)
    measured = list(row["measured"].values())
    names = [name for name in measured[0] if not name.endswith("seconds")]
    numbers = {name: _median(one.get(name) for one in measured) for name in names}
    tokens = configuration["sequences"] * configuration["length"]
    plan = Plan(
        optimizer=configuration["optimizer"],
        beta2=configuration["beta2"],
        weight_decay=configuration["decay"],
        warmup=configuration["warmup"],
        schedule="constant_with_warmup" if configuration["schedule"] == "constant" else configuration["schedule"],
        steps=configuration["steps"],
        clip=configuration["clip"],
        tokens=tokens,
        dtype=configuration["dtype"],
        objective=configuration.get("objective", "causal"),
        start=configuration.get("start", "initialised"),
    )
    return Case(
        configuration["family"],
        next((place for place, group in enumerate(TWINS) if configuration["family"] in group), len(TWINS)),
        configuration,
        numbers,
        plan,
        numpy.array([run["lr"] for run in runs]),
        numpy.array([outcome in LOST for outcome in found]),
        numpy.array([run["seed"] == 0 for run in runs]),
        tuple(found),
        edge_of(runs, found),
    )


def edge_of(runs: Sequence[dict[str, Any]], found: Sequence[str]) -> float | None:
    """lr*: the median over the seeds of the geometric mean of the first lost rate and the one below it."""
    edges = []
    for seed in {run["seed"] for run in runs}:
        mine = sorted(
            (run["lr"], outcome in LOST) for run, outcome in zip(runs, found, strict=True) if run["seed"] == seed
        )
        first = next((place for place, (_, lost) in enumerate(mine) if lost), None)
        if first:  # something survives below it
            edges.append(math.sqrt(mine[first - 1][0] * mine[first][0]))
    return statistics.median(edges) if edges else None


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def usable(cases: Sequence[Case], features: Sequence[str]) -> list[Case]:
    """The configurations in which every feature was measured."""
    return [case for case in cases if all(FEATURES[key].value(case.numbers, case.plan) is not None for key in features)]


def outcomes_of(cases: Sequence[Case], features: Sequence[str]) -> Outcomes:
    """What `hf_rksp.risk.fit.fit` takes."""
    x = numpy.array(
        [[float(FEATURES[key].value(case.numbers, case.plan) or 0.0) for key in features] for case in cases]
    )
    return Outcomes(
        x.reshape(len(cases), len(features)), [numpy.log2(case.lr) for case in cases], [case.lost for case in cases]
    )
