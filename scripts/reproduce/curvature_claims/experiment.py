"""The curvature monitor on whole runs: depth, warm-up of the learning rate, spikes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy

from hf_rksp import CurvatureConfig, CurvatureMonitor
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.intervals import mean
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.watched import failure, train

RATIOS = ("ratio_step", "ratio_momentum", "ratio_direction")
#: Limits that are tried, and readings in a row that an alarm needs.
LIMITS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DWELL = 3
#: A run that ends above it has learnt less than the frequencies of the bytes and half a nat more.
USELESS = 2.7


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there."""
    wikitext_file("validation")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run: the readings, and the mean loss between them."""
    every = job["every"]
    course = train(settings | job, [CurvatureMonitor(CurvatureConfig(every=every))], clip=1.0)
    readings = course.history.of("curvature")
    return {
        "exploded": course.exploded,
        "final": course.final(40),
        "loss": [round(loss, 4) if math.isfinite(loss) else None for loss in course.means(every)],
        "products": [row["products"] for row in readings],
        **{
            name: [float(f"{row['values'].get(name, math.nan):.4g}") for row in readings]
            for name in ("lambda_max", "lambda_direction", "residual", *RATIOS)
        },
    }


def first_alarm(row: dict[str, Any], ratio: str, limit: float) -> int | None:
    """The step at which so many readings in a row were above the limit."""
    above = 0
    for place, value in enumerate(row[ratio]):
        above = above + 1 if value > limit else 0
        if above == DWELL:
            return place * int(row["every"])
    return None


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Depth, or alarms at every limit, whatever the rows are of."""
    return _depth(rows) if len({row["layers"] for row in rows}) > 1 else _alarms(rows, settings)


def _depth(rows: list[dict[str, Any]]) -> str:
    lines = []

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return row["family"], row["layers"]

    for (family, layers), group in groupby(sorted(rows, key=place), key=place):
        runs = list(group)
        peaks = [max(row["lambda_max"][1:]) for row in runs]
        steps = [1 + int(numpy.argmax(row["lambda_max"][1:])) for row in runs]
        ends = [row["lambda_max"][-1] for row in runs]
        at = [row["lambda_max"][row["warmup"] // row["every"]] for row in runs]
        lines.append(
            [
                family, str(layers), str(len(runs)), mean(peaks).text(0),
                ", ".join(str(step * row["every"]) for step, row in zip(steps, runs, strict=True)),
                mean(at).text(0), mean(ends).text(0), f"{numpy.mean([row['final'] for row in runs if row['final']]):.3f}",
            ]
        )  # fmt: skip
    heads = ["network", "layers", "runs", "largest eigenvalue, its peak", "steps of the peaks", "at the end of the warm-up",
             "at the end", "final loss"]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"


def _alarms(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    fails = [(row, failure(row["loss"], row["every"], row["exploded"])) for row in rows]
    healthy = [row for row, at in fails if at is None and row["final"] is not None and row["final"] < USELESS]
    spikes = [(row, at) for row, at in fails if at is not None]
    lines = []
    for ratio in RATIOS:
        chosen = settings["limits"][ratio]
        for limit in LIMITS if chosen is None else [chosen]:
            false = sum(first_alarm(row, ratio, limit) is not None for row in healthy)
            leads = [
                at - found for row, at in spikes if (found := first_alarm(row, ratio, limit)) is not None and found < at
            ]
            lines.append(
                [
                    ratio, f"{limit:g}", f"{false} of {len(healthy)}", f"{len(leads)} of {len(spikes)}",
                    f"{numpy.median(leads):.0f}" if leads else "-",
                ]
            )  # fmt: skip
    heads = ["ratio", "limit", "healthy runs with an alarm", "spikes with an earlier alarm", "median lead in steps"]
    return "\n".join([*table(heads, lines), "", *_surges(spikes)]) + "\n"


def _surges(spikes: Sequence[tuple[dict[str, Any], int]]) -> list[str]:
    """The largest eigenvalue around a spike, relative to its median over the 50 steps before that."""
    found = []
    for row, at in spikes:
        place, values = at // row["every"], row["lambda_max"]
        before = values[max(place - 12, 1) : max(place - 2, 1)]
        around = values[max(place - 2, 0) : place + 3]
        if len(before) >= 4 and around:
            found.append(max(around) / float(numpy.median(before)))
    if not found:
        return ["No spike has ten readings before it."]
    above = sum(value > 2 for value in found)
    return [
        f"Around {above} of {len(found)} spikes (two readings before to two after) the largest eigenvalue is more than twice "
        f"its median of the ten readings before; the median of that ratio is {numpy.median(found):.2f}."
    ]
