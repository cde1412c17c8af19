"""One picture of where published runs begin to be lost, and where that is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.report.kit.svg import Figure
from hf_rksp.risk.calibrated import Prediction
from scripts.reproduce.forest import Case, Value, figure
from scripts.reproduce.published.judged import Row, judged, mean_rate
from scripts.reproduce.published.runs import edges


def picture(rows: list[Row], settings: Mapping[str, Any]) -> Figure:
    """Of plans whose source has a run that was fine and one that was lost: both learning rates, and what is expected."""
    every = judged(rows, settings)
    here = {each.run["id"]: each for each in every}
    cases = []
    for fine, lost in edges([each.run for each in every]):
        one = here[fine["id"]]
        alone = None if one.unmeasured is None or one.unmeasured.threshold is None else one.unmeasured.threshold
        rates = (_expected(one.ours), None if alone is None else Value(alone))
        cases.append(Case(_name(fine), rates, (fine["lr"], lost["lr"])))
    return figure(
        "published",
        "Where do published runs begin to be lost?",
        "Each bar is one network and plan of a paper or a public log.",
        cases,
        ("hf_rksp expects half of the runs to be lost; line: 5% to 95%", "plan and shape alone, fitted alike"),
        "learning rate",
        "published: from the highest learning rate that was fine to the lowest that was lost",
        (mean_rate(), "one learning rate for all: the mean of the runs behind the forecast"),
        log=True,
    )


def _expected(one: Prediction | None) -> Value | None:
    if one is None or one.threshold is None:
        return None
    return Value(one.threshold, one.rate_at(0.05), one.rate_at(0.95))


def _name(run: Mapping[str, Any]) -> str:
    """The network, and its plan if the source has several of it."""
    return str(run["id"].partition(", lr")[0] if "changed" in run else run["network"])
