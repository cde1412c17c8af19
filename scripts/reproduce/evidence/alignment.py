"""Claims of arXiv:2510.04202, Spectral Alignment."""

from __future__ import annotations

from scipy.stats import binomtest

from scripts.reproduce.alarms.experiment import judged_runs, leads_of
from scripts.reproduce.evidence.claim import ROOT, Claim, Finding, Paper, Verdict, reproduce, rows_of
from scripts.reproduce.harness.config import section
from scripts.reproduce.lead_time.scores import FORMS
from scripts.reproduce.lead_time.tables import alarms, warnings


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
    rows = rows_of("lead_time")
    every = section(ROOT / "scripts/reproduce/lead_time").settings["every"]
    found: dict[str, dict[int, int | None]] = {}
    for signal in ("alignment: majority share", "gradient norm", "spectral norm"):
        # The form that catches more; ours too.
        forms = [warnings(rows, alarms(rows, signal, form, every).__getitem__, every) for form in FORMS]
        found[signal] = max(forms, key=lambda leads: sum(lead is not None for lead in leads.values()))
    ours, *norms = found.values()
    caught = {signal: sum(lead is not None for lead in leads.values()) for signal, leads in found.items()}
    more = all(
        sum(lead is not None for lead in ours.values()) > sum(lead is not None for lead in one.values())
        for one in norms
    )
    earlier = []
    for one in norms:
        pairs = [
            (mine, other) for place in ours if (mine := ours[place]) is not None and (other := one[place]) is not None
        ]
        wins, losses = sum(mine > other for mine, other in pairs), sum(mine < other for mine, other in pairs)
        earlier.append(wins + losses > 0 and binomtest(wins, wins + losses, alternative="greater").pvalue < 0.05)
    verdict: Verdict = "held" if more and all(earlier) else "partly" if more or all(earlier) else "not"
    told = ", ".join(f"{signal} {count}" for signal, count in caught.items())
    return Finding(verdict, f"Of {len(ours)} failures with a warning before: {told}.")


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
            "those that both catch earlier (sign test, p < .05); partly: one of the two",
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
)  # fmt: skip
