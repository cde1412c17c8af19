"""The published runs of config.yaml, one by one: those of its tables, and those that stand alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Run = dict[str, Any]
#: What a run of a table may differ in.
FIELDS = ("lr", "beta2", "clip", "batch", "warmup", "decay")
#: A run is lost that misses this share of what the best of its table has learnt.
MISSED = 0.25


def runs_of(settings: Mapping[str, Any]) -> list[Run]:
    """Every run, with all that its source says of it."""
    found = [run for sweep in settings["sweeps"] for run in _expanded(sweep, settings)]
    found += [settings["sources"][run["source"]] | run for run in settings["runs"]]
    return found


def _expanded(sweep: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Run]:
    first = settings["sources"][sweep["source"]] | {name: value for name, value in sweep.items() if name[-3:] != "_is"}
    runs = [first | {"changed": None}]
    for field in FIELDS:
        for value, loss in sweep.get(f"{field}_is", {}).items():
            run = first | {field: value or None if field == "clip" else value, "loss": loss, "changed": field}
            if field == "batch" and "steps" in sweep:  # as much text as the others
                run["steps"] = first["steps"] * first["batch"] // value
            runs.append(run | {"id": f"{first['id']}, {field} {value:g}"})
    best = min((run["loss"] for run in runs if not math.isnan(run["loss"])), default=0.0)
    learnt = math.log(settings["networks"][sweep["network"]]["vocab_size"]) - best
    for run in runs:
        stable = run["lr"] < sweep.get("unstable_from", math.inf)
        fine = stable and run["loss"] - best < MISSED * learnt  # NaN is not
        run |= {"outcome": "fine" if fine else "lost", "said": f"{run['loss']:.3f}"}
    return runs


def edges(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Of runs that differ in their learning rate alone: the highest fine one and the lowest lost one, if there are both."""
    same: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = (run["network"], run["source"], *(run.get(name) for name in (*FIELDS[1:], "steps")))
        same.setdefault(key, []).append(run)
    found = []
    for mine in same.values():
        fine = [run for run in mine if run["outcome"] == "fine"]
        lost = [run for run in mine if run["outcome"] == "lost"]
        if fine and lost:
            found.append((max(fine, key=_rate), min(lost, key=_rate)))
    return found


def pairs(runs: list[Run], more: list[list[str]]) -> list[tuple[Run, Run]]:
    """Two runs at one learning rate that differ in one other thing, a fine one and a lost one.

    Args:
        more: identifiers of such runs of different networks, the fine one first.
    """
    of = {run["id"]: run for run in runs}
    found, first = [], None
    for run in runs:
        if "changed" in run and run["changed"] is None:
            first = run
        elif run.get("changed") not in (None, "lr") and first is not None and run["outcome"] != first["outcome"]:
            found.append((first, run) if first["outcome"] == "fine" else (run, first))
    return found + [(of[fine], of[lost]) for fine, lost in more]


def _rate(run: Run) -> float:
    return float(run["lr"])
