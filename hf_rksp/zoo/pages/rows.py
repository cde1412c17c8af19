"""One row per model: the facts and the means that the index, the README and the comparison of two models show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_rksp.json_data import section
from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report.kit.reading import layers_of
from hf_rksp.report.kit.text import DASH, count, form_of, large, number, power_of_ten, seconds, size, span
from hf_rksp.report.profile.view import BANDS
from hf_rksp.zoo.pages.model import SOURCE_NAMES
from hf_rksp.zoo.pages.trends import over_depth
from hf_rksp.zoo.shelf import Entry

#: Quantities of the radar chart: key, name, value at the centre, value at the rim, whether in powers of ten.
RADAR: tuple[tuple[str, str, float, float, bool], ...] = (
    ("near_unit_mass", "near-unit mass", 0.0, 1.0, False),
    ("expansive_mass", "expansive mass", 0.0, 1.0, False),
    ("contractive_mass", "contractive mass", 0.0, 1.0, False),
    ("spectral_radius", "spectral radius", 1.0, 100.0, True),
    ("eigenvector_condition", "eigenvector condition", 1.0, 1e6, True),
    ("nonlinearity_ratio", "nonlinearity ratio", 0.0, 1.0, False),
)


def radar_axes() -> str:
    """The ends of the axes of `RADAR`, in words."""
    ends: dict[tuple[float, float, bool], list[str]] = {}
    for _, name, low, high, log in RADAR:
        ends.setdefault((low, high, log), []).append(name)
    return "; ".join(
        f"{', '.join(names)} {low:g} to {power_of_ten(round(math.log10(high))) if log else f'{high:g}'}"
        + (" (logarithmic)" if log else "")
        for (low, high, log), names in ends.items()
    )


class Ranks(NamedTuple):
    """In how many directions the layers of a model were measured, over all layers and seeds."""

    most: int
    fewest: int
    width: int
    projected: bool

    @property
    def span(self) -> str:
        """The fewest and the most, "743 to 1,024"."""
        return count(self.most) if self.fewest == self.most else span((self.fewest, self.most), count)

    @property
    def note(self) -> str:
        """What the directions are a part of: "of 1,280, projected"; empty if they are all."""
        parts = [f"of {count(self.width)}"] if self.most < self.width else []
        return ", ".join([*parts, "projected"] if self.projected else parts)

    def __str__(self) -> str:
        """Both in one text."""
        return f"{self.span} {self.note}".rstrip()


class Seeds(NamedTuple):
    """How many seeds of a model are audited, out of how many."""

    audited: int
    all: int


@dataclass(frozen=True)
class Fact:
    """Something that the index says about a model besides the quantities.

    Attributes:
        key: its name in data.
        title: its name for readers.
        value: audits of a model -> the plain value, ``None`` without an audit. Tuples are sorted by their first member.
        text: the value -> what a reader sees.
    """

    key: str
    title: str
    value: Callable[[Entry], Any]
    text: Callable[[Any], str]


def _profile(entry: Entry, name: str) -> Any:
    return section(entry.profile or {}, name)


def _layers(entry: Entry) -> list[Any]:
    return layers_of(entry.profile or {})


def _ranks(entry: Entry) -> Ranks | None:
    layers = [layer for profile in entry.profiles.values() for layer in layers_of(profile)]
    if not layers:
        return None
    ranks = [layer["rank"] for layer in layers]
    width = max(layer["dim"] for layer in layers)
    return Ranks(max(ranks), min(ranks), width, any(layer["mode"] == "projected" for layer in layers))


def _band(bands: Sequence[str]) -> str:
    """The band of most seeds, and how many have it if not all do."""
    if not bands:
        return "not audited yet"
    band, same = Counter(bands).most_common(1)[0]
    return BANDS.get(band, DASH) + ("" if same == len(bands) else f" ({same} of {len(bands)} seeds)")


#: All facts, in the order of the comparison of two models.
FACTS: tuple[Fact, ...] = (
    Fact("weights", "weights", lambda entry: entry.model.weights, lambda weights: SOURCE_NAMES[weights]),
    Fact("parameters", "parameters", lambda entry: _profile(entry, "model").get("parameters"), large),
    Fact("layers", "layers", lambda entry: len(_layers(entry)) or None, count),
    Fact("width", "width", lambda entry: max((layer["dim"] for layer in _layers(entry)), default=None), count),
    Fact(
        "seeds",
        "seeds",
        lambda entry: Seeds(len(entry.reports), len(entry.model.seeds)),
        lambda seeds: f"{seeds.audited} of {seeds.all}",
    ),
    Fact("tokens", "tokens", lambda entry: max((layer["tokens"] for layer in _layers(entry)), default=None), count),
    Fact("ranks", "directions (rank)", _ranks, lambda ranks: str(ranks or DASH)),
    Fact("band", "risk band", lambda entry: [report["verdict"]["band"] for report in entry.reports.values()], _band),
    Fact(
        "seconds",
        "time of the profile",
        lambda entry: section(_profile(entry, "cost"), "seconds").get("profile"),
        seconds,
    ),
    Fact(
        "peak_memory",
        "peak memory",
        lambda entry: max((data["cost"]["peak_memory_bytes"] for data in entry.profiles.values()), default=None),
        size,
    ),
    Fact(
        "depth", "nonlinearity over depth", lambda entry: (over_depth(entry) or (None,))[0], lambda word: word or DASH
    ),
)


@dataclass(frozen=True)
class Row:
    """One model in the index.

    Attributes:
        entry: its audits.
        facts: key of `FACTS` -> plain value.
        means: quantity -> mean over layers and seeds.
        deviations: quantity -> standard deviation over seeds.
    """

    entry: Entry
    facts: dict[str, Any]
    means: dict[str, float | None]
    deviations: dict[str, float | None]

    def mean(self, quantity: str) -> str:
        """The mean as text."""
        return form_of(LAYER[quantity])(self.means[quantity])

    def deviation(self, quantity: str) -> str:
        """The deviation over seeds as text, "± 0.004", with the decimals of the mean; empty if there is none."""
        mean, deviation = self.mean(quantity), self.deviations[quantity]
        if self.means[quantity] is None or deviation is None:
            return ""
        if not mean.replace(",", "").replace(".", "").isdecimal():  # a power of ten
            return f"± {number(deviation, 2)}"
        decimals = len(mean.partition(".")[2])
        least = 10.0**-decimals
        if 0 < deviation < least / 2:
            return f"± <{least:g}"
        return f"± {deviation:,.{decimals}f}"

    def shown(self, quantity: str) -> str:
        """Mean and deviation in one text."""
        return f"{self.mean(quantity)} {self.deviation(quantity)}".rstrip()

    def text(self, key: str) -> str:
        """The fact ``key`` as text."""
        return next(fact.text(self.facts[key]) for fact in FACTS if fact.key == key)

    def texts(self) -> dict[str, str]:
        """Every fact as text."""
        return {fact.key: self.text(fact.key) for fact in FACTS}

    def sort(self, key: str) -> Any:
        """The value of the fact ``key`` or of a quantity that a table sorts by; empty without an audit."""
        value = self.facts[key] if key in self.facts else self.means[key]
        value = value[0] if isinstance(value, tuple) else value
        return "" if value is None else value

    @property
    def projected(self) -> bool:
        """Whether a layer was measured on fewer directions than its width, because the text has too few tokens."""
        return bool(self.facts["ranks"] and self.facts["ranks"].projected)


def row_of(entry: Entry) -> Row:
    """The row of a model."""
    return Row(
        entry,
        {fact.key: fact.value(entry) for fact in FACTS},
        {name: entry.mean(name) for name in SEEDS},
        {name: entry.deviation(name) for name in SEEDS},
    )
