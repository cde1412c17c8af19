"""One picture of the learning rates at which a fifth of the runs is lost."""

from __future__ import annotations

from typing import Any

from hf_rksp.report.kit.svg import Figure
from scripts.reproduce.forest import Case, Value, figure
from scripts.reproduce.highest_rate.tables import Likelihoods, Row, arms_of, highest

#: Clipping -> the arms without KSS, with the schedule of the paper, and with our default.
_ARMS = {"without clipping": ("none", "paper", ""), "with clipping": ("clip", "paper + clip", "kss + clip")}


def picture(rows: list[Row], settings: dict[str, Any]) -> Figure:
    """Of each task, without clipping and with it.

    Args:
        rows: of `tables.with_grid`.
    """
    arms = arms_of(rows, settings)
    cases = [
        Case(f"{task}, {clipping}", [_rate(arms.get((task, arm))) for arm in names])
        for task in settings["between"]
        for clipping, names in _ARMS.items()
    ]
    return figure(
        "highest_rate",
        "At which learning rate is a fifth of the runs lost?",
        "Lines: 95% intervals.",
        cases,
        ("without KSS", "KSS, schedule of the paper", "KSS, our default"),
        "learning rate",
        log=True,
    )


def _rate(arm: Likelihoods | None) -> Value | None:
    return None if arm is None else Value(*highest(arm)[:3])
