"""How far is the mean of a sample from the truth? Replace this with the experiment."""

from __future__ import annotations

import random
from typing import Any

from scripts.reproduce.harness import intervals, markdown


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One job: the distance for one sample. All that is random comes from the seed."""
    draw = random.Random(job["seed"])
    sample = [draw.gauss(0.0, settings["noise"]) for _ in range(job["size"])]
    return {"distance": abs(sum(sample) / len(sample))}


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The mean over the seeds for each size."""
    distances: dict[int, list[float]] = {}
    for row in rows:
        distances.setdefault(row["size"], []).append(row["distance"])
    lines = markdown.table(
        ["size", "distance"], [(size, intervals.mean(each).text()) for size, each in distances.items()]
    )
    return "\n".join(["Mean over the seeds, 95% interval.", "", *lines, ""])
