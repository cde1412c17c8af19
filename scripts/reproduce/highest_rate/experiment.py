"""The learning rate from which on a run is lost, by bisection: Table 5 of the paper. One job is one seed of one arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.intervals import Estimate, mean
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_default.tables import lost
from scripts.reproduce.kss_default.train import train

#: Share of the runs that may be lost at the highest learning rate of an arm: the paper's.
SHARE = 0.2
#: Arms with KSS -> the control that differs in KSS alone.
CONTROLS = {"paper": "none", "paper + clip": "clip", "kss + clip": "clip"}


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and every task and arm is in the settings."""
    wikitext_file("test")
    for field, known in (("task", settings["between"]), ("arm", settings["arms"])):
        if unknown := {job[field] for job in jobs} - known.keys():
            raise ValueError(f"{field} {', '.join(sorted(unknown))}: choose among {', '.join(known)}")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The last bracket, and every run on the way to it: its learning rate, and whether it was lost."""
    probes: list[list[Any]] = []

    def fails(lr: float) -> bool:
        arm = settings["arms"][job["arm"]]
        row = train(job["task"], lr, job["seed"], settings["steps"], arm["clip"], arm["kss"]) | {"task": job["task"]}
        probes.append([float(f"{lr:.4g}"), lost(row)])
        return lost(row)

    low, high = bisected(fails, *settings["between"][job["task"]], settings["until"])
    return {"low": low, "high": high, "probes": probes}


def bisected(fails: Callable[[float], bool], low: float, high: float, until: float) -> tuple[float, float]:
    """The bracket in which runs begin to fail.

    The ends are not run: a bracket that still ends there says that the value lies beyond, or near, that end.

    Args:
        fails: whether a run at a learning rate is lost.
        low, high: a learning rate at which none is lost, and one at which every one is.
        until: most that the ends of the bracket may differ, as a factor.

    >>> low, high = bisected(lambda lr: lr > 0.003, 0.001, 0.016, 1.1)
    >>> low <= 0.003 <= high <= 1.1 * low
    True
    """
    while high / low > until:
        middle = math.sqrt(low * high)
        if fails(middle):
            high = middle
        else:
            low = middle
    return low, high


def value(row: dict[str, Any]) -> float:
    """The learning rate from which on a run is lost: the middle of its bracket."""
    return math.sqrt(row["low"] * row["high"])


def highest(values: list[float]) -> tuple[float, float, float]:
    """The learning rate at which a share `SHARE` of the runs is lost, and its 95% interval from the order of the values.

    A run that begins to be lost at some learning rate is taken to be lost above it. The interval is that of a quantile
    (binomial ranks), and as wide as the values if they are few.

    >>> highest([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    (2.8, 1.0, 6.0)
    """
    ordered = sorted(values)
    count = len(ordered)
    ranks = [int(rank) for rank in stats.binom(count, SHARE).ppf([0.025, 0.975])]
    low, high = ordered[max(ranks[0] - 1, 0)], ordered[min(ranks[1] + 1, count - 1)]
    return float(np.quantile(ordered, SHARE)), low, high


def ratio(found: dict[int, float], control: dict[int, float]) -> Estimate | None:
    """How many times the value of the same seed in the control: the geometric mean; ``None`` without a common seed."""
    both = [math.log(found[seed] / control[seed]) for seed in found if seed in control]
    if not both:
        return None
    logs = mean(both)
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.count)


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """By task and arm: the highest learning rate with fewer than 20% lost, and the factor by which KSS raises that of a seed."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        arms: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["task"] == task:
                arms.setdefault(row["arm"], {})[row["seed"]] = value(row)
        ends = settings["between"][task]
        for arm, found in arms.items():
            quantile, low, high = highest(list(found.values()))
            beyond = sum(
                one * settings["until"] > ends[1] or one / settings["until"] < ends[0] for one in found.values()
            )
            control = arms.get(CONTROLS.get(arm, ""), {})
            times = ratio(found, control)
            lines.append(
                [
                    task, arm, str(len(found)), f"{quantile:.2g} [{low:.2g}, {high:.2g}]",
                    f"{statistics.median(found.values()):.2g}", str(beyond),
                    "-" if times is None else times.text(2),
                ]
            )  # fmt: skip
    heads = [
        "task", "arm", "seeds", "a fifth is lost at", "half is lost at", "seeds at an end of the range", "times that without KSS",
    ]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"
