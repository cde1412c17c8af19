"""Our values compared with the paper's, number by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from hf_rksp.paper import PaperFigure, PaperModel, read_paper
from hf_rksp.quantities import LAYER, SHARES
from hf_rksp.report import Table
from hf_rksp.report.kit.reading import layers_of, margins
from hf_rksp.report.kit.text import DASH, form_of
from hf_rksp.spectral.dmd import in_sample_error_bias
from hf_rksp.zoo.shelf import Entry

#: Largest difference between values that agree: a fraction of the paper's value, or, for shares, .05. The paper prints two
#: digits and no interval.
TOLERANCE, SHARE_TOLERANCE = 0.10, 0.05
#: With 2,048 tokens the nonlinearity ratio was lower than with 8,192 by up to this fraction, most where tokens repeat and a layer
#: sees equal states again (scripts/reproduce/tokens). The degrees of freedom of the fit explain only a part.
ENOUGH_TOKENS, TOKEN_BIAS = 8192, 0.43
RULE = "We call two values equal if they differ by less than 10% (shares: 0.05)."

_PROMPTS = (
    "The paper's prompt lists repeat 4 or 8 prompts: most columns are duplicates, and below N = d the regression is "
    "under-determined. Our passages are distinct. The paper projects the states on 32 directions; we use as many as the tokens "
    "allow. For GPT-2 124M with random weights, the projection alone reduces the eigenvector condition from thousands to tens, "
    "raises the near-unit mass above one half and triples the nonlinearity ratio. Repeated prompts then halve that ratio "
    "(scripts/reproduce/paper_setting)."
)
_SIZE_AND_TEXT = "Our size and text may differ."
_SPLINES = (
    "Our size, text and initialisation of the splines may differ. We read the paper's B as the order of the splines."
)
#: Why our values may differ, whatever the outcome. Key of the paper's model -> text.
WHY_DIFFERENT = {
    "llama-2-7b": _PROMPTS,
    "gpt2-124m": _PROMPTS,
    "gpt2-355m": _PROMPTS,
    "pre-ln": "Our models read text and have one size.",
    "moe-k1": _SIZE_AND_TEXT,
    "moe-k2": _SIZE_AND_TEXT,
    "moe-k4": _SIZE_AND_TEXT,
    "mamba-d256": (
        "Our values describe the whole residual block, x + f(x). The paper does not say whether it measured x + f(x) or f alone. "
        "Its contractive mass of .85 and its radius below 1 suggest f alone, whose linear map is A - I: its eigenvalues are those "
        "of A minus 1."
    ),
    "kan-b4": _SPLINES,
    "kan-b8": _SPLINES,
}
_UNTRAINED = (
    "The paper measured pretrained weights; ours are random. The difference shows what training changes. It neither confirms nor "
    "refutes the paper."
)

Outcome = Literal["agrees", "differs", "too few tokens", "not defined", "not audited"]


@dataclass(frozen=True)
class Comparison:
    """One number of the paper and ours.

    Attributes:
        paper: the paper's.
        ours: mean over the seeds; ``None`` if it is not defined, or if there is no audit.
        audited: whether there is an audit.
        bias: fraction by which our value may be too low because of too few tokens.
        without_skip: our value for f alone, in y = x + f(x), for the first seed; see `without_residual`.
    """

    paper: PaperFigure
    ours: float | None
    audited: bool = True
    bias: float = 0.0
    without_skip: float | None = None

    @property
    def name(self) -> str:
        """Quantity and third for a reader."""
        quantity = LAYER[self.paper.quantity]
        third = f", {self.paper.third}" if self.paper.third else ""
        return f"{quantity.title}{third}" + (f" ({quantity.symbol})" if quantity.symbol else "")

    @property
    def outcome(self) -> Outcome:
        """What came out; "too few tokens" if the bias of our value decides whether the two agree."""
        if self.ours is None:
            return "not defined" if self.audited else "not audited"
        lowest, highest = (value - self.paper.value for value in (self.ours, self.ours / (1 - self.bias)))
        surely_apart = lowest > self._tolerance or highest < -self._tolerance
        if surely_apart:
            return "differs"
        if self.bias:
            return "too few tokens"
        return "agrees"

    @property
    def verdict(self) -> str:
        """The outcome in words, for the whole block and, if there is that value, without the skip connection."""
        if self.ours is None:
            return "not defined here" if self.audited else "not audited yet"
        if self.without_skip is None:
            return self._words(self.ours)
        return f"{self._words(self.ours)}; {self._words_without_skip(self.ours, self.without_skip)}"

    def cells(self) -> tuple[str, ...]:
        """Quantity, table, the paper's value, ours, ours without the skip connection, verdict."""
        form = form_of(LAYER[self.paper.quantity])
        ours, without_skip = (DASH if value is None else form(value) for value in (self.ours, self.without_skip))
        return (
            self.name,
            f"Table {self.paper.table}",
            f"{self.paper.value:g}",
            ours,
            without_skip,
            self.verdict,
        )

    @property
    def _tolerance(self) -> float:
        return SHARE_TOLERANCE if self.paper.quantity in SHARES else TOLERANCE * self.paper.value

    def _words(self, ours: float) -> str:
        if self.outcome == "agrees":
            return "agrees"
        if self.outcome == "too few tokens":
            return f"not comparable: with so few tokens our value may be up to {self.bias:.0%} too low"
        difference, ratio = ours - self.paper.value, ours / self.paper.value
        if self.paper.quantity in SHARES or ratio < 2:
            return f"differs: our value is {abs(difference):.2f} {'higher' if difference > 0 else 'lower'}"
        return f"differs: our value is {ratio:,.{1 if ratio < 10 else 0}f} times as large"

    def _words_without_skip(self, ours: float, value: float) -> str:
        distance = abs(value - self.paper.value)
        if distance <= self._tolerance:
            return "without the skip connection the value agrees"
        if distance < abs(ours - self.paper.value):
            return "without the skip connection the value is closer, but still differs"
        return "without the skip connection the value is no closer"


@dataclass(frozen=True)
class PaperComparison:
    """All of the paper's numbers for one architecture, compared with the mean over our seeds.

    Attributes:
        paper: the paper's model.
        comparisons: one per number.
        why_different: why our values may differ, whatever the outcome.
        untrained: whether the paper's weights are pretrained and ours are random.
    """

    paper: PaperModel
    comparisons: tuple[Comparison, ...]
    why_different: str
    untrained: bool

    @property
    def agreeing(self) -> int:
        """How many numbers agree."""
        return sum(comparison.outcome == "agrees" for comparison in self.comparisons)

    @property
    def comparable(self) -> int:
        """How many numbers can be compared."""
        return sum(comparison.outcome in ("agrees", "differs") for comparison in self.comparisons)

    @property
    def score(self) -> str:
        """How many of the comparable numbers agree, in words."""
        verb = "agrees" if self.agreeing == 1 else "agree"
        return f"{self.agreeing} of {self.comparable} values {verb}"

    def table(self) -> Table:
        """One row per number."""
        columns: tuple[str, ...] = (
            "Quantity",
            "Paper",
            "Published",
            "Ours",
            "Without skip connection, first seed",
            "Outcome",
        )
        rows = [comparison.cells() for comparison in self.comparisons]
        if not self.paper.may_exclude_residual:
            columns, rows = columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
        return Table(columns, tuple(rows), numeric=tuple(range(2, len(columns) - 1)))


def compare_with_paper(entry: Entry) -> PaperComparison | None:
    """The paper's numbers for the architecture of ``entry`` and ours; ``None`` if the paper has none."""
    key = entry.model.published
    if key is None:
        return None
    paper = read_paper().models[key]
    bias = _token_bias(entry)
    profile = entry.profile if paper.may_exclude_residual else None
    comparisons = tuple(
        Comparison(
            figure,
            entry.mean(figure.quantity, figure.third),
            bool(entry.reports),
            bias if figure.quantity == "nonlinearity_ratio" else 0.0,
            None if profile is None else without_residual(profile, figure.quantity),
        )
        for figure in paper.figures
    )
    untrained = paper.pretrained and entry.model.source != "pretrained"
    why = f"{_UNTRAINED} {WHY_DIFFERENT[key]}" if untrained else WHY_DIFFERENT[key]
    return PaperComparison(paper, comparisons, why, untrained)


def without_residual(profile: Mapping[str, Any], quantity: str) -> float | None:
    """A mass or the spectral radius of f alone, in y = x + f(x): mean over the informative layers.

    The least-squares map of f is A - I, so that its eigenvalues are those of A minus 1.

    Returns:
        ``None`` for any other quantity.
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


def _token_bias(entry: Entry) -> float:
    """The fraction by which the nonlinearity ratio may be too low; 0 with enough tokens or without a report."""
    if entry.report is None or max(layer["tokens"] for layer in layers_of(entry.report["profile"])) >= ENOUGH_TOKENS:
        return 0.0
    checks = {check["id"]: check["value"] for check in entry.report["verdict"]["checks"]}
    return min(0.99, max(TOKEN_BIAS, in_sample_error_bias(checks["tokens_per_direction"])))
