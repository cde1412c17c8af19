"""When a run is lost, and the learning rate from which runs are lost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from scripts.reproduce.risk.tasks import TASKS

#: Share of what can be learnt (trivial loss minus the best final loss of the configuration) that a useful run may miss.
MISSED = 0.25
#: With less learnt than this at every learning rate, in nats, a quarter of it is within the noise of a final loss: then "useless"
#: says nothing, and only explosions and damage count.
LEAST = 0.3

#: "slow" is a useless run at a learning rate below the best one: too few steps, no failure. "damaged": trained weights that a
#: learning rate above the best one leaves with a higher loss on held-out batches than they began with.
Outcome = Literal["useful", "slow", "useless", "damaged", "exploded"]
LOST = ("useless", "damaged", "exploded")


def learnt(runs: Sequence[dict[str, Any]], configuration: dict[str, Any]) -> float:
    """What the best run of a configuration has learnt, in nats; 0 if every run exploded."""
    whole = [run["final"] for run in runs if run["exploded"] is None and run["final"] is not None]
    return trivial_loss(runs, configuration) - min(whole) if whole else 0.0


def trivial_loss(runs: Sequence[dict[str, Any]], configuration: dict[str, Any]) -> float:
    """The loss of who learns nothing: that of the trained weights before step 0, or of predicting the frequencies of the labels."""
    if configuration.get("start") == "pretrained":
        return statistics.fmean(run["before"] for run in runs)
    return TASKS[configuration["task"]].trivial


def outcomes(runs: Sequence[dict[str, Any]], configuration: dict[str, Any]) -> list[Outcome]:
    """What became of each run of one configuration; `LOST` are the last three outcomes."""
    trained = configuration.get("start") == "pretrained"
    whole = [run for run in runs if run["exploded"] is None and run["final"] is not None]
    if not whole:
        return ["exploded"] * len(runs)
    best = min(whole, key=lambda run: run["final"])
    can_be_learnt = learnt(runs, configuration)
    limit = best["final"] + MISSED * can_be_learnt if can_be_learnt >= LEAST else math.inf

    def outcome(run: dict[str, Any]) -> Outcome:
        if run["exploded"] is not None or run["final"] is None:
            return "exploded"
        if trained and run["lr"] > best["lr"] and not (run["after"] or math.inf) <= run["before"]:
            return "damaged"
        if run["final"] <= limit:
            return "useful"
        return "slow" if run["lr"] < best["lr"] else "useless"

    return [outcome(run) for run in runs]


def highest_surviving(runs: Sequence[dict[str, Any]], configuration: dict[str, Any]) -> float:
    """The highest learning rate below the first at which a run of any seed is lost; half the lowest if all are lost."""
    found = outcomes(runs, configuration)
    lost = [run["lr"] for run, outcome in zip(runs, found, strict=True) if outcome in LOST]
    rates = sorted({run["lr"] for run in runs})
    first = min(lost, default=float("inf"))
    return float(max((rate for rate in rates if rate < first), default=rates[0] / 2))
