"""What the index says of each model: one row of values and of texts, for the page, the README and the tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report.kit.reading import layers_of
from hf_rksp.report.kit.text import DASH, count, form_of, large, power_of_ten, seconds, size, span
from hf_rksp.report.profile.view import BANDS
from hf_rksp.zoo.pages import paper_comparison as compare
from hf_rksp.zoo.pages.model import SOURCE_NAMES
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
        + (" in powers of ten" if log else "")
        for (low, high, log), names in ends.items()
    )


#: What `Row.texts` are called beside each other.
TEXT_NAMES = {
    "weights": "weights",
    "parameters": "parameters",
    "layers": "layers",
    "width": "width",
    "seeds": "seeds",
    "tokens": "tokens",
    "rank": "directions seen (rank)",
    "band": "risk band",
    "seconds": "time of the profile",
    "peak_memory": "peak memory",
    "pattern": "nonlinearity over the depth",
}


@dataclass(frozen=True)
class Row:
    """One model in the index.

    Attributes:
        entry: its audits.
        facts: model, size and cost as plain values; ``None`` where there is no audit.
        means: quantity -> mean over layers and seeds. deviations: standard deviation over seeds.
        pattern: of the nonlinearity ratio over the depth.
    """

    entry: Entry
    facts: dict[str, Any]
    means: dict[str, float | None]
    deviations: dict[str, float | None]
    pattern: str

    def shown(self, quantity: str) -> str:
        """Mean with the deviation over seeds."""
        form = form_of(LAYER[quantity])
        if self.means[quantity] is None:
            return DASH
        deviation = self.deviations[quantity]
        return form(self.means[quantity]) + ("" if deviation is None else f" ± {form(deviation)}")

    @property
    def projected(self) -> bool:
        """Whether a layer was seen through a projection on fewer directions than its width, for want of tokens."""
        return bool(self.facts["projected"])

    def _ranks(self) -> str:
        """The fewest and the most directions of a layer, in any seed."""
        if not self.entry.reports:
            return DASH
        fewest, most, width = self.facts["fewest"], self.facts["rank"], self.facts["width"]
        shown = count(most) if fewest == most else span((fewest, most), count)
        return shown + (f" of {count(width)}" if most < width else "") + (", projected" if self.projected else "")

    def texts(self) -> dict[str, str]:
        """The facts as a reader sees them."""
        facts = self.facts
        return {
            "weights": SOURCE_NAMES[self.entry.model.weights],
            "parameters": large(facts["parameters"]),
            "layers": count(facts["layers"]),
            "width": count(facts["width"]),
            "seeds": f"{len(self.entry.reports)} of {len(self.entry.model.seeds)}",
            "tokens": count(facts["tokens"]),
            "rank": self._ranks(),
            "band": _bands(facts["bands"] or []),
            "seconds": seconds(facts["seconds"]),
            "peak_memory": size(facts["peak_memory_bytes"]),
            "pattern": self.pattern,
        }


def _bands(bands: Sequence[str]) -> str:
    """The band of most seeds, and of how many."""
    if not bands:
        return "not audited yet"
    band, same = Counter(bands).most_common(1)[0]
    return BANDS.get(band, DASH) + ("" if same == len(bands) else f" ({same} of {len(bands)} seeds)")


_FACTS = (
    "parameters",
    "layers",
    "width",
    "rank",
    "fewest",
    "projected",
    "tokens",
    "dtype",
    "bands",
    "seconds",
    "peak_memory_bytes",
)


def row_of(entry: Entry) -> Row:
    """The row of a model."""
    profile = entry.profile
    facts: dict[str, Any] = dict.fromkeys(_FACTS)
    if profile is not None:
        layers = layers_of(profile)
        every = [layer for data in entry.profiles.values() for layer in layers_of(data)]
        ranks = [layer["rank"] for layer in every]
        facts = {
            "parameters": profile["model"].get("parameters"),
            "layers": len(layers),
            "width": max(layer["dim"] for layer in layers),
            "rank": max(ranks),
            "fewest": min(ranks),
            "projected": any(layer["mode"] == "projected" for layer in every),
            "tokens": max(layer["tokens"] for layer in layers),
            "dtype": profile["model"].get("dtype"),
            "bands": [report["verdict"]["band"] for report in entry.reports.values()],
            "seconds": profile["cost"]["seconds"]["profile"],
            "peak_memory_bytes": max(data["cost"]["peak_memory_bytes"] for data in entry.profiles.values()),
        }
    found = compare.start_to_end(entry)
    return Row(
        entry,
        facts,
        {name: entry.mean(name) for name in SEEDS},
        {name: entry.deviation(name) for name in SEEDS},
        found[0] if found else DASH,
    )
