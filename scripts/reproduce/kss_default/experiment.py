"""Does KSS keep runs that diverge without it, and do they learn more? One job is one training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scripts.reproduce.data import wikitext_file

from .tables import tables
from .tasks import TASKS
from .train import train

__all__ = ["check", "run", "tables"]


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Every name is known, and the text is there if a task reads it."""
    for job in jobs:
        if job["task"] not in TASKS:
            raise ValueError(f"task {job['task']!r}: choose among {', '.join(TASKS)}")
        if job["arm"] not in settings["arms"]:
            raise ValueError(f"arm {job['arm']!r}: not under settings, arms in config.yaml")
    if any(job["task"].startswith("text") for job in jobs):
        wikitext_file("test")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; the row has the settings of the arm, and of KSS also those left at their defaults."""
    from hf_rksp import KSSConfig

    arm = settings["arms"][job["arm"]]
    clip, kss = arm["clip"], arm["kss"]
    row = train(job["task"], job["lr"], job["seed"], job["steps"], clip, kss)
    if row["skipped"] and row["lost_by_loss"] is None:  # a run that KSS has left must not count as one with it
        raise RuntimeError(f"KSS left out {row['skipped']} layers of a run that did not explode; its warnings say why")
    if kss is not None:
        kss = kss | asdict(KSSConfig(**{name: value for name, value in kss.items() if name != "variant"}))
    return {"clip": clip, "kss": kss} | row
