"""Claims of arXiv:2510.04202, Spectral Alignment."""

from __future__ import annotations

from scipy.stats import binomtest

from scripts.reproduce.alarms.experiment import judged_runs, leads_of
from scripts.reproduce.evidence.claim import (
    NO_ROWS,
    Claim,
    Finding,
    Paper,
    Verdict,
    experiment_settings,
    reproduce,
    rows_of,
)
from scripts.reproduce.lead_time.scores import FORMS
from scripts.reproduce.lead_time.tables import Line, alarms, line, with_thresholds


def _early() -> Finding:
    _, healthy, late = judged_runs(rows_of("alarms"), 5)
    early = [lead for lead in leads_of(late, "alignment") if lead]
    false = sum(any(rule == "alignment" for rule, *_ in row["alarms"]) for row in healthy)
    return Finding(
        "not tested",
        f"The failures of our runs are fast, those of the paper slow. {len(early)} of {len(late)} failures that could have had an "
        f"earlier alarm have one; {false} of {len(healthy)} healthy runs have one.",
    )


def _than_norms() -> Finding:
    rows = with_thresholds(rows_of("lead_time"))
    every = experiment_settings("lead_time")["every"]
    if not rows:
        return NO_ROWS
    signals = ("alignment: majority share", "gradient norm", "spectral norm")
    found = {signal: alarms(rows, signal, every) for signal in signals}
    good, told = [], []
    for form in FORMS:
        ours, *norms = (line(signal, rows, found[signal][form], every) for signal in signals)
        good.append(all(_caught(ours) > _caught(one) and _earlier(ours, one) for one in norms))
        told.append(f"by {form} {', '.join(f'{one.name} {_caught(one)}' for one in (ours, *norms))}")
    verdict: Verdict = "held" if all(good) else "partly" if any(good) else "not"
    return Finding(verdict, f"Of {len(ours.leads)} failures with a warning before: {'; '.join(told)}.")


def _caught(one: Line) -> int:
    return sum(lead is not None for lead in one.leads.values())


def _earlier(ours: Line, other: Line) -> bool:
    """By a sign test over the failures that both catch."""
    both = [(lead, other.leads[place]) for place, lead in ours.leads.items()]
    known = [(mine, its) for mine, its in both if mine is not None and its is not None]
    wins, losses = sum(mine > its for mine, its in known), sum(mine < its for mine, its in known)
    return wins + losses > 0 and bool(binomtest(wins, wins + losses, alternative="greater").pvalue < 0.05)


ALIGNMENT = Paper(
    "Spectral Alignment",
    "Qiu, Wu, Tan, Wang, Yao, arXiv:2510.04202",
    (
        Claim(
            "section 5", "Alignment warns hundreds or thousands of steps before a loss explosion, and earlier than norms do.",
            "held: earlier than gradient norm and spectral norm at equal false alarms, in slow failures of more than one kind",
            judge=_early, **reproduce("alarms"),
        ),
        Claim(
            "section 5", "Alignment sees a failure that norms do not see, or see later.",
            "held: with thresholds for 5% false alarms it catches more failures than gradient norm and spectral norm, and "
            "those that both catch earlier (sign test, p < .05), by its level and by its change; partly: by one of the two",
            judge=_than_norms, **reproduce("lead_time"),
        ),
        Claim(
            "Theorem 1", "The spectral norm of a weight grows in a step if its inputs are aligned.",
            "held: the planted case agrees, and the growth keeps its sign in a run whose inputs are aligned",
            command="pytest tests/unit/test_alignment.py tests/training/test_alignment.py -k 'growth or theorem'",
            rows=("tests/training/test_alignment.py",),
            judge=lambda: Finding(
                "partly",
                "On planted matrices the growth is that of the theorem. In a run with aligned inputs it keeps its sign, which can "
                "be negative: the theorem gives the size, and the gradient decides the direction.",
            ),
        ),
    ),
    "Which signal warns first in runs that fail in five ways ([lead_time](../../scripts/reproduce/lead_time/README.md)):\n\n"
    "![Each signal by each way to fail: share of the failures with a warning, and its lead in steps](figures/who_warns_first.svg)",
)  # fmt: skip
