"""What the reports of the zoo say, in a few sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from hf_rksp.paper import PaperFigure
from hf_rksp.report.kit.text import count
from hf_rksp.zoo.pages.paper_comparison import PaperComparison
from hf_rksp.zoo.pages.rows import Row
from hf_rksp.zoo.pages.trajectories import Trajectory, late_gains
from hf_rksp.zoo.pages.trends import LEVEL, TrendResult


def in_short(rows: Sequence[Row], comparisons: Sequence[PaperComparison], trends: Sequence[TrendResult]) -> list[str]:
    """The findings that a reader should meet first."""
    return [*_over_depth(rows), *_trends(trends), *_agreement(comparisons)]


def depth_lead(rows: Sequence[Row], trajectories: Sequence[Trajectory]) -> str:
    """How to read the table of the nonlinearity ratio over the depth, and what training changes."""
    lead = (
        "The paper says that transformers start linear and end nonlinear. The table shows the nonlinearity ratio in the early, "
        f"middle and late third of the depth. It counts as increasing if no step decreases by {LEVEL} or more."
    )
    gaining, families = late_gains(trajectories)
    if not families:
        return lead
    names = f" ({', '.join(gaining)})" if gaining else ""
    return (
        f"{lead} Training moves nonlinearity to the late layers in {len(gaining)} of {families} families{names}, one run each: the "
        f"ratio of the late to the early third grows by more than {LEVEL} from the first to the last checkpoint."
    )


def depth_counts(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Weights -> in how many models the nonlinearity ratio increases with depth, of how many.

    Weights are "initialised", "trained" (here) or "pretrained". Of a training run, its start and its end count.
    """
    counts = {}
    for weights in ("initialised", "trained", "pretrained"):
        directions = [
            row.facts["depth"]
            for row in rows
            if row.entry.model.weights == weights
            and row.entry.model.progress in (None, 0.0, 1.0)
            and row.facts["depth"] is not None
        ]
        if directions:
            counts[weights] = directions.count("increases"), len(directions)
    return counts


def _over_depth(rows: Sequence[Row]) -> list[str]:
    forms = {
        "initialised": "{} of {} models with random weights",
        "trained": "{} of {} models trained here",
        "pretrained": "{} of {} pretrained models",
    }
    counts = [forms[weights].format(*found) for weights, found in depth_counts(rows).items()]
    if not counts:
        return []
    return [
        "The nonlinearity ratio increases from the early to the middle to the late third of the depth (ignoring decreases below "
        f"{LEVEL}) in {', '.join(counts)}. The paper: transformers start linear and end nonlinear."
    ]


def _trends(trends: Sequence[TrendResult]) -> list[str]:
    """One sentence per quantity and change; sizes with equal outcomes are named together."""
    outcomes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for result in trends:
        verdicts = outcomes.setdefault((result.name, result.trend.change), {})
        verdicts.setdefault(result.verdict, []).append(result.size)
    sentences = []
    for (name, change), verdicts in outcomes.items():
        parts = [f"{verdict} ({', '.join(sizes)})" for verdict, sizes in verdicts.items()]
        sentences.append(f"{name[0].upper()}{name[1:]} with {change}: {'; '.join(parts)}.")
    tokens = sorted({result.tokens for result in trends})
    if tokens:
        numbers = " or ".join(count(number) for number in tokens)
        sentences.append(
            f"These trends hold for {numbers} tokens per model; some reverse with more text (scripts/reproduce/tokens)."
        )
    return sentences


def agreement(comparisons: Sequence[PaperComparison]) -> tuple[int, int]:
    """How many of the paper's values agree with ours for at least one model size, and how many can be compared.

    Each counts once, however many of our models it is compared with. Values of pretrained models do not count if our weights are
    random.
    """
    comparable: set[tuple[str, PaperFigure]] = set()
    agreeing: set[tuple[str, PaperFigure]] = set()
    for comparison in comparisons:
        if comparison.untrained:
            continue
        for each in comparison.comparisons:
            value = (comparison.paper.name, each.paper)
            if each.outcome in ("agrees", "differs"):
                comparable.add(value)
            if each.outcome == "agrees":
                agreeing.add(value)
    return len(agreeing), len(comparable)


def _agreement(comparisons: Sequence[PaperComparison]) -> list[str]:
    agreeing, comparable = agreement(comparisons)
    if not comparable:
        return []
    return [
        f"{agreeing} of the paper's {comparable} comparable values agree with ours for at least one model size. Its "
        "values for pretrained models do not count, because our weights for these models are random."
    ]
