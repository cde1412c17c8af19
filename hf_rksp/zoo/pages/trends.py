"""In which direction a quantity changes: over the depth of a model, and from one architecture to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from hf_rksp.paper import read_paper
from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import LAYER
from hf_rksp.report import Table
from hf_rksp.report.kit.reading import layers_of
from hf_rksp.report.kit.text import form_of
from hf_rksp.zoo.shelf import Entry

Direction = Literal["increases", "decreases", "constant", "no clear trend"]
#: A change below this is none; for values above 1, below this fraction of the largest value.
LEVEL = 0.02
LEAD = (
    "Single values depend on size and text, which the paper does not state. This table shows the direction in which a quantity "
    f"changes if one thing changes. Constant means: within {LEVEL}, or within 2% for values above 1. The direction also depends on "
    "the amount of text. With four times the tokens, the near-unit mass increases with the number of experts by a quarter as much, "
    "and the spectral radius decreases in neither size (scripts/reproduce/tokens)"
)


@dataclass(frozen=True)
class Trend:
    """A quantity that the paper follows from one architecture to the next.

    Attributes:
        change: what differs between the architectures.
        models: keys of the paper's models, in order.
        quantity: key of the quantity.
    """

    change: str
    models: tuple[str, ...]
    quantity: str

    @property
    def paper_values(self) -> tuple[float, ...]:
        """The paper's values, one per model."""
        return tuple(read_paper().models[key].mean(self.quantity) for key in self.models)


_MOE, _KAN = ("moe-k1", "moe-k2", "moe-k4"), ("kan-b4", "kan-b8")
_EXPERTS, _SPLINES = "1, 2, 4 active experts of 8 per token", "B-splines of order 4, 8"
TRENDS = (
    Trend(_EXPERTS, _MOE, "near_unit_mass"),
    Trend(_EXPERTS, _MOE, "spectral_radius"),
    Trend(_SPLINES, _KAN, "nonlinearity_ratio"),
    Trend(_SPLINES, _KAN, "reliable_fraction"),
)


@dataclass(frozen=True)
class TrendResult:
    """One trend of the paper in one size of our models.

    Attributes:
        trend: what is followed.
        size: blocks and width of our models, in words.
        ours: our values, one per model.
        tokens: the largest number of tokens that a layer of our models saw.
    """

    trend: Trend
    size: str
    ours: tuple[float, ...]
    tokens: int

    @property
    def name(self) -> str:
        """The quantity for a reader."""
        quantity = LAYER[self.trend.quantity]
        return f"{quantity.title} ({quantity.symbol})" if quantity.symbol else quantity.title

    @property
    def verdict(self) -> str:
        """The direction in the paper and here, in words."""
        paper, ours = direction(self.trend.paper_values), direction(self.ours)
        return f"{paper} in both" if paper == ours else f"{paper} in the paper; {ours} here"

    def cells(self) -> tuple[str, ...]:
        """One row of `trend_table`."""
        form = form_of(LAYER[self.trend.quantity])
        paper = ", ".join(f"{value:g}" for value in self.trend.paper_values)
        return (self.trend.change, self.size, self.name, paper, ", ".join(map(form, self.ours)), self.verdict)


def direction(values: Sequence[float]) -> Direction:
    """The direction of ``values``: "increases" or "decreases" if no step goes the other way by `LEVEL` or more."""
    least = LEVEL * max(1.0, max(values))
    steps = [after - before for before, after in pairwise(values)]
    if max(values) - min(values) < least:
        return "constant"
    if min(steps) > -least and sum(steps) >= least:
        return "increases"
    return "decreases" if max(steps) < least and sum(steps) <= -least else "no clear trend"


def over_depth(entry: Entry) -> tuple[Direction, tuple[float, ...]] | None:
    """The direction of the nonlinearity ratio from the early to the late third of the depth.

    The paper says that transformers start linear and end nonlinear.

    Returns:
        The direction and the three values; ``None`` without an audit.
    """
    values = tuple(value for third in THIRDS if (value := entry.mean("nonlinearity_ratio", third)) is not None)
    return (direction(values), values) if len(values) == len(THIRDS) else None


def trend_results(entries: Sequence[Entry]) -> list[TrendResult]:
    """Every trend of the paper in every size of ours that has all its models."""
    sizes: dict[tuple[int, int], dict[str, Entry]] = {}
    for entry in entries:
        if entry.profile is not None and entry.model.published:
            layers = layers_of(entry.profile)
            sizes.setdefault((len(layers), layers[0]["dim"]), {}).setdefault(entry.model.published, entry)
    results = []
    for trend in TRENDS:
        for (depth, width), by_key in sizes.items():
            members = [by_key[key] for key in trend.models if key in by_key]
            ours = tuple(value for entry in members if (value := entry.mean(trend.quantity)) is not None)
            if len(ours) == len(trend.models):
                tokens = max(layer["tokens"] for entry in members for layer in layers_of(entry.profile or {}))
                results.append(TrendResult(trend, f"{depth} blocks of width {width}", ours, tokens))
    return results


def trend_table(results: Sequence[TrendResult]) -> Table | None:
    """One row per result; ``None`` if there is none."""
    columns = ("What changes", "Size", "Quantity", "Paper", "Ours", "Direction")
    return Table(columns, tuple(result.cells() for result in results)) if results else None
