"""One picture of Tables 8 and 9: what KSS does to text and images."""

from __future__ import annotations

from hf_rksp.report.kit.svg import Figure
from scripts.reproduce.forest import Case, Value, figure
from scripts.reproduce.paper_models.tables import Row, cells_of, difference

_ARMS = {"paper + clip": "KSS, schedule of the paper, and clipping", "kss + clip": "KSS, our default, and clipping"}


def picture(rows: list[Row]) -> Figure:
    """Held-out loss minus that with clipping, of the models that have both forms of KSS."""
    cases = []
    for (model, lr), arms in cells_of(rows).items():
        if not {"clip", *_ARMS} <= arms.keys():
            continue
        found = (difference(arms[arm], arms["clip"]) for arm in _ARMS)
        cases.append(Case(f"{model}, {lr:g}", [Value(*one[:3]) if one.count > 1 else None for one in found]))
    return figure(
        "paper_models",
        "What does KSS do to text and images?",
        "Each line is a network and a learning rate. Lines: 95% intervals.",
        cases,
        tuple(_ARMS.values()),
        "held-out loss minus that with clipping alone",
        limit=(0.0, "no difference"),
    )
