"""Claims of arXiv:2510.04202, Spectral Alignment."""

from __future__ import annotations

from scripts.reproduce.alarms.experiment import judged_runs, leads_of
from scripts.reproduce.evidence.claim import Claim, Finding, Paper, reproduce, rows_of


def _early() -> Finding:
    _, healthy, late = judged_runs(rows_of("alarms"), 5)
    early = [lead for lead in leads_of(late, "alignment") if lead]
    false = sum(any(rule == "alignment" for rule, *_ in row["alarms"]) for row in healthy)
    return Finding(
        "not tested",
        f"The failures of our runs are fast, those of the paper slow. {len(early)} of {len(late)} failures that could have had an "
        f"earlier alarm have one; {false} of {len(healthy)} healthy runs have one.",
    )


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
)  # fmt: skip
