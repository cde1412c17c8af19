"""What the published reports of the zoo say of the paper's tables."""

from __future__ import annotations

import functools
import statistics

from hf_rksp.zoo.pages import findings, trends
from hf_rksp.zoo.pages.paper_comparison import compare_with_paper
from hf_rksp.zoo.pages.rows import Row, row_of
from hf_rksp.zoo.render import all_models
from hf_rksp.zoo.shelf import Shelf, read_shelf
from scripts.reproduce.evidence.claim import ROOT

_FOLDER = ROOT / "zoo_reports"


@functools.cache
def shelf() -> Shelf:
    """All published reports."""
    return read_shelf(_FOLDER, all_models(_FOLDER))


@functools.cache
def rows() -> tuple[Row, ...]:
    """A row per model."""
    return tuple(row_of(entry) for entry in shelf().entries)


def agreement() -> tuple[int, int]:
    """How many of the paper's values agree with ours, of how many."""
    compared = [found for row in rows() if (found := compare_with_paper(row.entry))]
    return findings.agreement(compared)


def depth_counts() -> dict[str, tuple[int, int]]:
    """Weights -> models whose nonlinearity ratio increases with depth, of how many."""
    return findings.depth_counts(rows())


def trend(quantity: str, change: str) -> list[trends.TrendResult]:
    """One trend of the paper, in each size of our models."""
    return [
        result for result in trends.trend_results(shelf().entries)
        if result.trend.quantity == quantity and change in result.trend.change
    ]  # fmt: skip


def seconds_per_layer(model: str) -> float:
    """Median time of a layer of one model's audit."""
    entry = next(entry for entry in shelf().entries if entry.model.id == model)
    assert entry.profile is not None
    return statistics.median(layer["seconds"] for layer in entry.profile["layers"])
