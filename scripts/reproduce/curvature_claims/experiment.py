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
#: Growth of the largest eigenvalue from one reading to the next that counts as a surge.
SURGE = 10
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
    return _depth(rows) if len({row["layers"] for row in rows}) > 1 else _alarms(rows)


def _depth(rows: list[dict[str, Any]]) -> str:
    lines = []

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return row["family"], row["layers"]

    for (family, layers), group in groupby(sorted(rows, key=place), key=place):
        runs = list(group)
        peaks = [max(row["lambda_max"][1:]) for row in runs]
        steps = [1 + int(numpy.argmax(row["lambda_max"][1:])) for row in runs]
        ends = [row["warmup"] // row["every"] for row in runs]
        early = [float(numpy.median(row["lambda_max"][1:end])) for row, end in zip(runs, ends, strict=True)]
        late = [float(numpy.median(row["lambda_max"][end:])) for row, end in zip(runs, ends, strict=True)]
        lines.append(
            [
                family, str(layers), str(len(runs)), mean(early).text(0), mean(late).text(0),
                f"{numpy.median(peaks):.0f}",
                ", ".join(str(step * row["every"]) for step, row in zip(steps, runs, strict=True)),
                f"{numpy.mean([row['final'] for row in runs if row['final']]):.3f}",
            ]
        )  # fmt: skip
    heads = ["network", "layers", "runs", "largest eigenvalue, median in the warm-up", "median after it",
             "largest reading, median of the runs", "steps of the largest readings", "final loss"]  # fmt: skip
    return "\n".join(table(heads, lines)) + "\n"


def healthy_and_spikes(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], int]]]:
    """The healthy runs, and those with a spike, with its step."""
    fails = [(row, failure(row["loss"], row["every"], row["exploded"])) for row in rows]
    healthy = [row for row, at in fails if at is None and row["final"] is not None and row["final"] < USELESS]
    return healthy, [(row, at) for row, at in fails if at is not None]


def _alarms(rows: list[dict[str, Any]]) -> str:
    healthy, spikes = healthy_and_spikes(rows)
    lines = []
    for ratio in RATIOS:
        for limit in LIMITS:
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
    return "\n".join([*table(heads, lines), "", *_surges(healthy, spikes)]) + "\n"


def _surges(healthy: Sequence[dict[str, Any]], spikes: Sequence[tuple[dict[str, Any], int]]) -> list[str]:
    """Whether the largest eigenvalue jumps at a spike, and how often it does in runs without one."""
    with_surge, before = 0, 0
    for row, at in spikes:
        place, found = at // row["every"], surges(row)
        with_surge += any(place <= one <= place + 2 for one in found)
        before += any(place - 2 <= one < place for one in found)
    calm = [len(surges(row)) for row in healthy]
    readings = sum(len(row["lambda_max"]) for row in healthy)
    return [
        f"A surge is a largest eigenvalue of more than {SURGE} times that of the reading before. {with_surge} of {len(spikes)} "
        f"spikes have one at the spike or in the two readings after it, {before} in the two readings before it.",
        f"{sum(map(bool, calm))} of {len(healthy)} healthy runs have surges, {1000 * sum(calm) / max(readings, 1):.0f} per 1,000 "
        "readings.",
    ]


def surges(row: dict[str, Any]) -> list[int]:
    """The readings at which the largest eigenvalue has grown more than `SURGE` times since the one before."""
    values = row["lambda_max"]
    return [
        place for place in range(1, len(values)) if values[place - 1] > 0 and values[place] > SURGE * values[place - 1]
    ]
