"""Which families does KSS help or harm, why, and which rule harms none? One job is one training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hf_rksp import KSSConfig

from .choice import decided
from .networks import FAMILIES
from .rules import RANDOM, without_rule
from .tables import AUTO, BOTH, tables
from .train import train

__all__ = ["check", "run", "tables"]


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Every name is known, and the data is there."""
    for job in jobs:
        if job["family"] not in FAMILIES:
            raise ValueError(f"family {job['family']!r}: choose among {', '.join(FAMILIES)}")
        if job["arm"] not in (AUTO, BOTH, *settings["arms"]):
            raise ValueError(f"arm {job['arm']!r}: not under settings, arms in config.yaml")
        FAMILIES[job["family"]].task.needs()


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; the row has the settings of KSS, also those left at their defaults. Of "auto" it has what was decided.

    The arm "auto, both" trains with clipping and with KSS where "auto" says on. Where it says off, nothing has to be trained: the
    run is that of clipping to the bit.
    """
    if job["arm"] == AUTO:
        return {"choice": decided(job)}
    if job["arm"] == BOTH:
        choice = decided(job)
        return {
            "choice": choice,
            "runs": {name: _trained(job, settings, name) for name in ("clip", "kss") if choice["on"]},
        }
    return _trained(job, settings, job["arm"])


def _trained(job: dict[str, Any], settings: dict[str, Any], name: str) -> dict[str, Any]:
    arm = settings["arms"][name]
    kss = arm["kss"]
    given = None
    if kss is not None:
        if kss.get("rule") == RANDOM:
            _, given = train(job, arm | {"kss": without_rule(kss)})
        kss = kss | asdict(KSSConfig(**without_rule(kss)))
    row, _ = train(job, arm, given)
    return {"kss": kss} | row
