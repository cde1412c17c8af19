"""When a run is lost, and the learning rate from which runs are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from scripts.reproduce.risk.tasks import trivial_loss

#: Share of what can be learnt (trivial loss minus the best final loss of the configuration) that a useful run may miss.
MISSED = 0.25
#: With less to be learnt than this, in nats, nothing was learnt at any learning rate and only explosions count.
LEAST = 0.1

#: "slow" is a useless run at a learning rate below the best one: too few steps, no failure.
Outcome = Literal["useful", "slow", "useless", "exploded"]


def outcomes(runs: Sequence[dict[str, Any]], task: str) -> list[Outcome]:
    """What became of each run of one configuration; `LOST` are the last two."""
    trivial = trivial_loss(task)
    whole = [run for run in runs if run["exploded"] is None and run["final"] is not None]
    if not whole:
        return ["exploded"] * len(runs)
    best = min(whole, key=lambda run: run["final"])
    learnt = trivial - best["final"]
    limit = best["final"] + MISSED * learnt if learnt >= LEAST else float("inf")

    def outcome(run: dict[str, Any]) -> Outcome:
        if run["exploded"] is not None or run["final"] is None:
            return "exploded"
        if run["final"] <= limit:
            return "useful"
        return "slow" if run["lr"] < best["lr"] else "useless"

    return [outcome(run) for run in runs]


LOST = ("useless", "exploded")


def edge(runs: Sequence[dict[str, Any]], task: str) -> float:
    """The highest learning rate below the first at which a run of any seed is lost; half the lowest if all are lost."""
    lost = [run["lr"] for run, outcome in zip(runs, outcomes(runs, task), strict=True) if outcome in LOST]
    rates = sorted({run["lr"] for run in runs})
    first = min(lost, default=float("inf"))
    return float(max((rate for rate in rates if rate < first), default=rates[0] / 2))
