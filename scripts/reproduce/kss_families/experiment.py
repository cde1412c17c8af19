"""Which families does KSS help or harm, why, and which rule harms none? One job is one training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hf_rksp import KSSConfig

from .choice import decided
from .networks import FAMILIES
from .tables import AUTO, tables
from .train import train

__all__ = ["check", "run", "tables"]


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Every name is known, and the data is there."""
    for job in jobs:
        if job["family"] not in FAMILIES:
            raise ValueError(f"family {job['family']!r}: choose among {', '.join(FAMILIES)}")
        if job["arm"] not in (AUTO, *settings["arms"]):
            raise ValueError(f"arm {job['arm']!r}: not under settings, arms in config.yaml")
        FAMILIES[job["family"]].task.needs()


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; the row has the settings of KSS, also those left at their defaults. Of "auto" it has what was decided."""
    if job["arm"] == AUTO:
        return {"choice": decided(job)}
    arm = settings["arms"][job["arm"]]
    kss = arm["kss"]
    if kss is not None:
        kss = kss | asdict(KSSConfig(**{name: value for name, value in kss.items() if name != "rule"}))
    return {"kss": kss} | train(job, arm)
