"""The learning rate from which on runs are lost, by bisection: Table 5 of the paper. One job is one seed of one arm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scripts.reproduce.data import wikitext_file
from scripts.reproduce.kss_default.tables import lost
from scripts.reproduce.kss_default.train import train

from .tables import tables

__all__ = ["check", "run", "tables"]

#: Of a probe's run, what its row keeps.
_KEPT = ("lost_by_loss", "lost_by_gradient", "loss", "largest_gradient_norm", "skipped")


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and every task and arm is in the settings."""
    wikitext_file("test")
    for field, known in (("task", settings["between"]), ("arm", settings["arms"])):
        if unknown := {job[field] for job in jobs} - known.keys():
            raise ValueError(f"{field} {', '.join(sorted(unknown))}: choose among {', '.join(known)}")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Every run on the way to the last bracket: its learning rate, whether it was lost, and how it ended."""
    probes: list[dict[str, Any]] = []

    def fails(lr: float) -> bool:
        arm = settings["arms"][job["arm"]]
        row = train(job["task"], lr, job["seed"], settings["steps"], arm["clip"], arm["kss"]) | {"task": job["task"]}
        probes.append({"lr": lr, "lost": lost(row)} | {name: row[name] for name in _KEPT})
        return lost(row)

    bisected(fails, *settings["between"][job["task"]], settings["until"])
    return {"probes": probes}


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
