"""Runs that go well and runs that do not, watched by every monitor: who raises an alarm, and how long before the failure?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy

from hf_rksp import AlignmentConfig, AlignmentMonitor, AttentionConfig, AttentionMonitor
from hf_rksp.baseline import Baseline
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.risk.labels import LOST, outcomes
from scripts.reproduce.watched import failure, train

#: What raises alarms by the rule of the monitors: their own series, and two that everybody has.
SIGNALS = ("alignment", "effective rank", "update norm", "largest logit", "loss", "gradient norm")
#: Readings of a past, and flagged ones, before which the rule of the monitors raises no alarm.
_PAST, _DWELL = 16, 3
#: Scatter of log2 of loss and gradient norm that counts at least.
_FLOOR = 0.05


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there."""
    wikitext_file("validation")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run: loss and gradient norm between readings, alarms with their steps, and how it ended."""
    every, steps = settings["every"], settings["steps"]
    monitors = [AlignmentMonitor(AlignmentConfig(every=every)), AttentionMonitor(AttentionConfig(every=every))]
    course = train(settings | job, monitors, clip=1.0 if job["clip"] else math.inf)
    events = [row for row in course.history.events if row["what"] == "alarm"]
    shares = [row["values"].get("majority_share/max") for row in course.history.of("alignment")]
    means, norms = course.means(every), course.norms
    alarms = [[row["rule"], row["step"], row.get("layer", "")] for row in events]
    largest = [float(max(norms[i : i + every])) for i in range(0, len(norms), every)]
    alarms += [["loss", step, ""] for step in _alarms(means, every)]
    alarms += [["gradient norm", step, ""] for step in _alarms(largest, every)]
    return {
        "final": course.final(steps // 10),
        "exploded": course.exploded,
        "alarms": alarms,
        "loss": _rounded(means),
        "gradient_norm": _rounded(largest),
        "majority_share": [None if share is None else round(share, 3) for share in shares],
    }


def _alarms(values: Sequence[float], every: int) -> list[int]:
    """Steps at which the rule of the monitors raises an alarm on log2 of a series of readings."""
    baseline = Baseline(1, _FLOOR)
    found = []
    for place, value in enumerate(values):
        level = math.log2(value) if 0 < value < math.inf else math.nan
        if baseline.judge(numpy.array([level])).began:
            found.append(place * every)
    return found


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


Row = dict[str, Any]


def judged_runs(
    rows: Sequence[Row], every: int
) -> tuple[list[tuple[Row, str, int | None]], list[Row], list[tuple[Row, int]]]:
    """All runs with their outcome and the step of their failure; the healthy ones; failures that could have had an alarm before."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["family"], row["clip"], row["seed"]

    judged: list[tuple[dict[str, Any], str]] = []
    for _, group in groupby(sorted(rows, key=place), key=place):
        runs = list(group)
        judged += zip(runs, outcomes(runs, {"task": "text"}), strict=True)
    fails = [(row, outcome, failure(row["loss"], every, row["exploded"])) for row, outcome in judged]
    healthy = [row for row, outcome, at in fails if outcome not in LOST and at is None]
    return fails, healthy, [(row, at) for row, _, at in fails if at is not None and at > first_possible(every)]


def first_possible(every: int) -> int:
    """The step before which no alarm is possible."""
    return (_PAST + _DWELL - 1) * every


def leads_of(runs: Sequence[tuple[Row, int]], signal: str) -> list[int | None]:
    """Steps from the first alarm of a signal to the failure of each run; ``None`` without an alarm before it."""
    leads: list[int | None] = []
    for row, at in runs:
        before = [step for rule, step, _ in row["alarms"] if rule == signal and step <= at]
        leads.append(at - before[0] if before else None)
    return leads


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Alarms in healthy runs, and their lead in runs that fail."""
    every = settings["every"]
    fails, healthy, late = judged_runs(rows, every)
    spikes = [(row, at) for row, _, at in fails if at is not None]
    silent = [row for row, outcome, at in fails if outcome in LOST and at is None]
    first = first_possible(every)
    lines = []
    for signal in SIGNALS:
        false = [sum(rule == signal for rule, *_ in row["alarms"]) for row in healthy]
        early = [lead for lead in leads_of(late, signal) if lead]
        lost = sum(any(rule == signal for rule, *_ in row["alarms"]) for row in silent)
        readings = sum(len(row["loss"]) for row in healthy)
        lines.append(
            [
                signal, f"{sum(count > 0 for count in false)} of {len(healthy)}",
                f"{1000 * sum(false) / max(readings, 1):.2f}",
                f"{len(early)} of {len(late)}", f"{numpy.median(early):.0f}" if early else "-",
                f"{lost} of {len(silent)}",
            ]
        )  # fmt: skip
    heads = [
        "signal", "healthy runs with an alarm", "alarms per 1,000 readings there",
        f"failures after step {first} with an earlier alarm", "median lead in steps", "useless runs without a spike, with an alarm",
    ]  # fmt: skip
    by_family = [
        [
            family,
            str(sum(row["family"] == family for row, *_ in fails)),
            str(sum(row["family"] == family and outcome in LOST for row, outcome, _ in fails)),
            str(sum(row["family"] == family and at is not None for row, _, at in fails)),
        ]
        for family in dict.fromkeys(row["family"] for row, *_ in fails)
    ]
    steps = sorted(at for _, at in spikes)
    note = f"{len(spikes)} runs fail, by a spike or an explosion, {len(spikes) - len(late)} of them by step {first}, before which "
    note += f"no alarm is possible; the others at steps {', '.join(str(at) for at in steps if at > first)}."
    by_family_heads = ["family", "runs", "lost", "with a spike or an explosion"]
    return "\n".join([*table(heads, lines), "", note, "", *table(by_family_heads, by_family)]) + "\n"
