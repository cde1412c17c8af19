"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import math
import statistics
from typing import Any

from hf_rksp.risk.calibrated import SAFE, Prediction, shipped
from hf_rksp.risk.plan import Plan
from scripts.reproduce.harness.markdown import table

from .forward_model import forward_model
from .runs import edges, pairs, runs_of

Row = dict[str, Any]
#: What a plan of config.yaml may leave out.
_PLAN = {"dtype": "float32", "warmup": 0}


def plan_of(run: dict[str, Any]) -> Plan:
    """How a published run was planned."""
    of = _PLAN | run
    return Plan(
        beta2=of["beta2"], weight_decay=of["decay"], warmup=of["warmup"], schedule=of["schedule"], steps=of["steps"],
        clip=of["clip"], tokens=of["batch"] * of["length"], dtype=of["dtype"],
    )  # fmt: skip


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """The learning rate at which runs begin to be lost; pairs in which one other thing differs; then all runs, one by one."""
    measured = {row["network"]: row for row in rows}
    models = {False: shipped("initialised"), True: forward_model()}
    runs = [run for run in runs_of(settings) if run["network"] in measured]
    said = {}
    for run in runs:
        row = measured[run["network"]]
        said[run["id"]] = models[row["forward"]].predict(row["numbers"], plan_of(run), row["architecture"])
    text = ["## Where runs begin to be lost", "", *_edges(runs, said), ""]
    text += ["## One other thing differs", "", *_pairs(runs, said, settings), "", "## All runs", ""]
    for forward, what in ((False, "All features"), (True, "Features of forward passes alone")):
        mine = [run for run in runs if measured[run["network"]]["forward"] == forward]
        if known := [(p, run["outcome"] == "lost") for run in mine if (p := _p(run, said)) is not None]:
            text += [f"{what}. {_score(known)}", ""]
    if any(row["forward"] for row in rows):
        text += [f"The model of forward passes alone: {models[True].description[2]}", ""]
    return "\n".join([*text, *_every(runs, said, measured)]) + "\n"


def _p(run: dict[str, Any], said: dict[str, Prediction]) -> float | None:
    return said[run["id"]].p_lost(run["lr"])


def _edges(runs: list[dict[str, Any]], said: dict[str, Prediction]) -> list[str]:
    lines, errors = [], {}
    for fine, lost in edges(runs):
        rate = said[fine["id"]].rate_at(0.5)
        if rate is None:
            continue
        off, constant = (_off(one, fine["lr"], lost["lr"]) for one in (rate, mean_rate()))
        errors.setdefault(fine["network"], []).append((abs(math.log2(off)), abs(math.log2(constant))))
        lines.append([fine["id"], f"{fine['lr']:g}", f"{lost['lr']:g}", f"{rate:.2g}", _times(off), _times(constant)])
    heads = [
        "the same plan as", "highest that was fine", "lowest that was lost", "predicted: half are lost at",
        "times the nearer of both", "the mean of all runs, times the nearer",
    ]  # fmt: skip
    if not lines:
        return table(heads, lines)
    own = {name: [statistics.fmean(column) for column in zip(*pairs, strict=True)] for name, pairs in errors.items()}
    ours, constants = (statistics.fmean(column) for column in zip(*own.values(), strict=True))
    better = sum(ours < constant for ours, constant in own.values())
    factors = (
        f"The prediction is off by a factor of {2**ours:.2g} in the mean over {len(own)} networks. One learning rate for all, the "
        f"mean of the runs behind the model ({mean_rate():.2g}), is off by {2**constants:.2g}. The prediction is nearer in "
        f"{better} of {len(own)}."
    )
    return [*table(heads, lines), "", factors]


def mean_rate() -> float:
    """The geometric mean of the learning rates at which the runs behind the model are lost: what needs no measurement."""
    return float(2 ** shipped("initialised").bias)


def _off(rate: float, fine: float, lost: float) -> float:
    """How many times the nearer end of the bracket; 1 within it."""
    return 1.0 if fine <= rate <= lost else rate / fine if rate < fine else rate / lost


def _times(off: float) -> str:
    return "between" if off == 1 else f"{off:.2g}"


def _pairs(runs: list[dict[str, Any]], said: dict[str, Prediction], settings: dict[str, Any]) -> list[str]:
    here = {run["id"] for run in runs}
    lines = []
    for fine, lost in pairs(runs, [names for names in settings["pairs"] if {*names} <= here]):
        p, q = _p(fine, said), _p(lost, said)
        if p is not None and q is not None:
            lines.append([fine["id"], lost["id"], f"{p:.1%}", f"{q:.1%}", "yes" if q > p else "no"])
    return table(["fine", "lost", "P(lost) of the first", "of the second", "higher"], lines)


def _score(known: list[tuple[float, bool]]) -> str:
    """How many are right, and the Brier score, with what needs no model."""
    right, lost = sum((p >= 0.5) == was for p, was in known), sum(was for _, was in known)
    share = lost / len(known)
    brier = sum((p - was) ** 2 for p, was in known) / len(known)
    return (
        f"{right} of {len(known)} are right at a limit of 50%; the more frequent outcome is right in "
        f"{max(lost, len(known) - lost)}. Brier score {brier:.3f}; the share of lost runs alone, {share:.0%}, has "
        f"{share * (1 - share):.3f}."
    )


def _every(runs: list[dict[str, Any]], said: dict[str, Prediction], measured: dict[str, Row]) -> list[str]:
    lines = []
    for run in runs:
        row, prediction, p = measured[run["network"]], said[run["id"]], _p(run, said)
        interval = prediction.interval(run["lr"], 0.95)
        lines.append(
            [
                run["id"], run["network"], f"{row['weights'] / 1e6:,.0f}", f"{run['lr']:g}",
                f"**{run['outcome']}** ({run['said']})", "-" if p is None else f"{p:.0%}",
                "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
                *("-" if (rate := prediction.rate_at(at)) is None else f"{rate:.2g}" for at in (SAFE, 0.5)),
                prediction.status, "forward passes" if row["forward"] else "all",
            ]
        )  # fmt: skip
    heads = [
        "run", "network", "million weights", "learning rate", "outcome (as published)", "P(lost)", "95% interval",
        "below 5% up to", "50% at", "state", "features",
    ]  # fmt: skip
    return table(heads, lines)
