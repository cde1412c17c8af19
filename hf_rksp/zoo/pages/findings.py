"""What the zoo says so far, in a few sentences that are made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rksp.report import Table
from hf_rksp.report.kit.text import DASH
from hf_rksp.zoo.pages import trajectories as training
from hf_rksp.zoo.pages.paper_comparison import LEVEL, Beside
from hf_rksp.zoo.pages.rows import Row


def in_short(rows: Sequence[Row], besides: Sequence[Beside], trends: Table | None) -> list[str]:
    """The findings that a reader should meet first."""
    found = []
    if rising := _rising(rows):
        found.append(f"Start linear, end nonlinear: {rising}.")
    for (what, quantity), said in _by_trend(trends).items():
        sizes = f", in {len(said)} sizes" if len(said) > 1 else ""
        told = (
            said[0][1] + sizes
            if len({words for _, words in said}) == 1
            else "; ".join(": ".join(pair) for pair in said)
        )
        found.append(f"{quantity[0].upper()}{quantity[1:]} with {what}: {told}.")
    if trends:
        found.append(
            "These directions, and courses with size, are those at the zoo's number of tokens: more text turns some "
            "(scripts/reproduce/tokens)."
        )
    return found + _agreement(besides)


def _agreement(besides: Sequence[Beside]) -> list[str]:
    """How many of the paper's figures agree with ours; each counts once, whatever the number of our models beside it."""
    comparable, agree = set(), set()
    for beside in besides:
        for comparison in beside.comparisons:
            if comparison.agrees is None or beside.untrained:
                continue
            figure = (beside.published.name, comparison.published)
            comparable.add(figure)
            if comparison.agrees:
                agree.add(figure)
    if not comparable:
        return []
    return [
        f"{len(agree)} of {len(comparable)} figures of the paper agree with ours in one size at least. Those of pretrained models "
        "do not count: ours have random weights."
    ]


def over_depth(rows: Sequence[Row], courses: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Does the nonlinearity rise with the depth, and does training move it that way?"""
    lead = f"The paper: transformers start linear and end nonlinear. Here {_rising(rows)}."
    gaining, of = training.late_gains(courses)
    if not of:
        return lead
    names = f" ({', '.join(gaining)})" if gaining else ""
    return (
        f"{lead} Training moves it that way in {len(gaining)} of {of} families{names}, one run each: there the late third over "
        f"the early one grows by more than {LEVEL} from the first to the last point."
    )


def _rising(rows: Sequence[Row]) -> str:
    """In how many models the nonlinearity rises throughout; of one that was trained here, at the end alone."""
    counts = []
    for source, said in (("initialised", "random weights"), ("trained", "trained here"), ("pretrained", "pretrained")):
        models = [row for row in rows if row.entry.model.weights == source and row.entry.model.step in (None, 0.0, 1.0)]
        found = [row.pattern for row in models if row.pattern != DASH]
        if found:
            counts.append(f"{found.count('rises')} of {len(found)} models ({said})")
    if not counts:
        return ""
    return (
        "the nonlinearity ratio rises from the early over the middle to the late third, but for steps back of less than "
        f"{LEVEL}, in {', '.join(counts)}"
    )


def _by_trend(trends: Table | None) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """What changes and the quantity -> for each size, which it is and what came out."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for what, size, quantity, _, _, words in trends.rows if trends else ():
        found.setdefault((what, quantity), []).append((size, words))
    return found
