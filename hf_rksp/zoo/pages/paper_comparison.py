"""Ours beside the paper's: each figure, whether they agree, and the pattern over the depth, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from hf_rksp.quantities import LAYER, SHARES
from hf_rksp.report import Table
from hf_rksp.report.kit.reading import layers_of, margins
from hf_rksp.report.kit.text import DASH, form_of
from hf_rksp.risk.thresholds import fit_error_too_low
from hf_rksp.zoo.published import PUBLISHED, THIRDS, TRENDS, Published, PublishedModel
from hf_rksp.zoo.shelf import Entry

#: Two figures agree within a tenth of the paper's, or, for shares, within .05: it prints two digits and no interval.
TOLERANCE, SHARE_TOLERANCE = 0.10, 0.05
#: A quantity that changes by less, of its largest value where that is above 1, is level.
LEVEL = 0.02
#: The nonlinearity ratio at 2,048 tokens came out up to so much lower than at 8,192, most where tokens repeat and a layer sees
#: the same state again (scripts/reproduce/tokens): more than the degrees of freedom of the fit explain.
ENOUGH_TOKENS, TOO_LOW = 8192, 0.43
TRENDS_LEAD = (
    "Single figures depend on size and text, which the paper does not give; here is which way a quantity goes when one thing "
    "changes (level: within .02, or 2% above 1). That depends on the amount of text too: with four times the tokens, the rise of "
    "the near-unit mass with the experts shrinks to a quarter, and the radius falls with them in no size (scripts/reproduce/tokens)"
)


@dataclass(frozen=True)
class Comparison:
    """One of the paper's figures beside ours.

    Attributes:
        ours: mean over the seeds; ``None``: not defined, or no audit. audited: whether there is one.
        low: share by which ours may come out too low for want of tokens. alone: ours of f alone, see `without_residual`.
    """

    published: Published
    ours: float | None
    audited: bool = True
    low: float = 0.0
    alone: float | None = None

    @property
    def name(self) -> str:
        """Quantity and third, for a reader."""
        quantity = LAYER[self.published.quantity]
        title, symbol = quantity.title, quantity.symbol
        third = f", {self.published.third}" if self.published.third else ""
        return f"{title}{third}" + (f" ({symbol})" if symbol else "")

    @property
    def agrees(self) -> bool | None:
        """Whether the two agree; ``None`` where ours is not there, or may lie too low by what would decide it."""
        if self.ours is None:
            return None
        ends = [value - self.published.value for value in (self.ours, self.ours / (1 - self.low))]
        if self.low and not (min(ends) > self._allowed or max(ends) < -self._allowed):
            return None
        return abs(ends[0]) <= self._allowed

    @property
    def _allowed(self) -> float:
        return SHARE_TOLERANCE if self.published.quantity in SHARES else TOLERANCE * self.published.value

    @property
    def verdict(self) -> str:
        """In words; of f alone as well, where there is that."""
        words = self._of_the_block
        if self.alone is None or self.ours is None:
            return words
        far, alone = (abs(value - self.published.value) for value in (self.ours, self.alone))
        if alone <= self._allowed:
            return f"{words}; f alone agrees"
        return f"{words}; f alone {'is nearer, and differs too' if alone < far else 'is no nearer'}"

    @property
    def _of_the_block(self) -> str:
        if self.ours is None:
            return "not defined here" if self.audited else "not audited yet"
        if self.agrees:
            return "agrees"
        theirs = self.published.value
        if self.agrees is None:
            return f"not comparable: with so few tokens ours comes out up to {self.low:.0%} too low"
        if self.published.quantity in SHARES or abs(self.ours - theirs) < theirs:
            return f"differs: ours is {abs(self.ours - theirs):.2f} {'higher' if self.ours > theirs else 'lower'}"
        return f"differs: ours is {self.ours / theirs:,.{1 if self.ours < 10 * theirs else 0}f} times as large"

    def cells(self) -> tuple[str, ...]:
        """Quantity, table, the paper's, ours, ours of f alone, verdict."""
        form = form_of(LAYER[self.published.quantity])
        ours, alone = (DASH if value is None else form(value) for value in (self.ours, self.alone))
        return (self.name, f"Table {self.published.table}", f"{self.published.value:g}", ours, alone, self.verdict)


@dataclass(frozen=True)
class Beside:
    """All of the paper's figures for one architecture, beside the mean over our seeds.

    Attributes:
        published: the paper's. comparisons: each figure. apart: why ours may differ, whatever came out.
        untrained: the paper's are of pretrained weights, ours of random ones.
    """

    published: PublishedModel
    comparisons: tuple[Comparison, ...]
    apart: str
    untrained: bool

    @property
    def agree(self) -> int:
        """How many agree."""
        return sum(comparison.agrees is True for comparison in self.comparisons)

    @property
    def of(self) -> int:
        """How many can be compared."""
        return sum(comparison.agrees is not None for comparison in self.comparisons)

    def table(self) -> Table:
        """One row a figure."""
        columns = ("Quantity", "Paper", "Published", "Ours", "f alone, first seed", "In words")
        rows = [comparison.cells() for comparison in self.comparisons]
        if self.published.residual:
            columns, rows = columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
        return Table(columns, tuple(rows), numeric=tuple(range(2, len(columns) - 1)))


def beside(entry: Entry) -> Beside | None:
    """The paper's figures for this architecture beside ours; ``None`` where it gives none."""
    if entry.model.published is None:
        return None
    published = PUBLISHED[entry.model.published]
    low = _too_low(entry)
    comparisons = tuple(
        Comparison(
            figure,
            entry.mean(figure.quantity, figure.third),
            bool(entry.reports),
            low if figure.quantity == "nonlinearity_ratio" else 0.0,
            None if published.residual or entry.profile is None else without_residual(entry.profile, figure.quantity),
        )
        for figure in published.figures
    )
    apart = published.apart
    untrained = published.pretrained and entry.model.source != "pretrained"
    if untrained:
        apart = (
            "The paper's figures are of the pretrained model, these are of random weights: they say what training adds, and "
            f"cannot confirm or refute it. {apart}"
        )
    return Beside(published, comparisons, apart, untrained)


def without_residual(profile: Mapping[str, Any], quantity: str) -> float | None:
    """A mass or the spectral radius of f alone, in y = x + f(x): mean over the layers where f does something.

    The least-squares map of f is A - I, so each of its eigenvalues is one of A less 1.
    """
    lower, upper, contractive, _ = margins(profile)
    shares: dict[str, Callable[[float], bool]] = {
        "near_unit_mass": lambda modulus: lower <= modulus <= upper,
        "expansive_mass": lambda modulus: modulus > upper,
        "contractive_mass": lambda modulus: modulus < contractive,
    }
    informative = [layer for layer in layers_of(profile) if not layer.get("uninformative")]
    layers = [[abs(complex(*pair) - 1) for pair in layer["eigenvalues"]] for layer in informative]
    if quantity in shares:
        return fmean(fmean(map(shares[quantity], moduli)) for moduli in layers)
    return fmean(map(max, layers)) if quantity == "spectral_radius" else None


def _too_low(entry: Entry) -> float:
    """By what share the nonlinearity ratio may come out too low; 0 where there are tokens enough, or there is no report."""
    if entry.report is None or max(layer["tokens"] for layer in layers_of(entry.report["profile"])) >= ENOUGH_TOKENS:
        return 0.0
    checks = {check["id"]: check["value"] for check in entry.report["verdict"]["checks"]}
    return min(0.99, max(TOO_LOW, fit_error_too_low(checks["tokens_per_direction"])))


def start_to_end(entry: Entry) -> tuple[str, tuple[float, ...]] | None:
    """Does the nonlinearity ratio rise from the early to the late third (the paper: start linear, end nonlinear)?

    Returns:
        "rises", "falls", "level" or "neither", with the three values; ``None`` without an audit.
    """
    values = tuple(value for third in THIRDS if (value := entry.mean("nonlinearity_ratio", third)) is not None)
    if len(values) < len(THIRDS):
        return None
    return course(values), values


def course(values: Sequence[float]) -> str:
    """ "rises" or "falls" (no step goes the other way by more than `LEVEL`), "level", or "neither"."""
    least = LEVEL * max(1.0, max(values))
    steps = [after - before for before, after in pairwise(values)]
    if max(values) - min(values) < least:
        return "level"
    if min(steps) > -least and sum(steps) >= least:
        return "rises"
    return "falls" if max(steps) < least and sum(steps) <= -least else "neither"


def trends(entries: Sequence[Entry]) -> Table | None:
    """What the paper follows from one architecture to the next, and whether ours goes the same way, in each size of ours.

    Returns:
        ``None`` where no size has all the models of a trend.
    """
    sizes: dict[tuple[int, int], dict[str | None, Entry]] = {}
    for entry in entries:
        if entry.report is not None and entry.model.published:
            layers = layers_of(entry.report["profile"])
            sizes.setdefault((len(layers), layers[0]["dim"]), {}).setdefault(entry.model.published, entry)
    rows = []
    for trend in TRENDS:
        quantity = LAYER[trend.quantity]
        title, symbol, form = quantity.title, quantity.symbol, form_of(quantity)
        for (depth, width), members in sizes.items():
            ours = [members[key].mean(trend.quantity) for key in trend.models if key in members]
            known = [value for value in ours if value is not None]
            if len(known) < len(trend.models):
                continue
            theirs, own = course(trend.values), course(known)
            rows.append(
                (
                    trend.said,
                    f"{depth} blocks of {width}",
                    f"{title} ({symbol})" if symbol else title,
                    ", ".join(f"{value:g}" for value in trend.values),
                    ", ".join(form(value) for value in known),
                    f"{theirs} in both" if theirs == own else f"the paper's {theirs}, ours {_COURSES[own]}",
                )
            )
    return Table(("What changes", "In", "Quantity", "Paper", "Ours", "In words"), tuple(rows)) if rows else None


_COURSES = {"rises": "rises", "falls": "falls", "level": "is level", "neither": "does neither"}
