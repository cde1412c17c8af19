"""Which method keeps a network without a norm? Tables 3, 4, 6, 13 and 14 of the paper in one experiment. One job is one run."""

from __future__ import annotations

import importlib.util
from typing import Any

from .methods import KEYS
from .penalties import PENALTIES
from .tables import tables
from .train import cost, train

__all__ = ["check", "run", "tables"]


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Every method is known, and the package with the optimizers is there if one needs it."""
    for name in dict.fromkeys(job["method"] for job in jobs):
        if name not in settings["methods"]:
            raise ValueError(f"method {name!r}: not under settings, methods in config.yaml")
        method = settings["methods"][name]
        if unknown := method.keys() - KEYS:
            raise ValueError(
                f"method {name!r}: {', '.join(sorted(unknown))} is no key; the keys are {', '.join(sorted(KEYS))}"
            )
        if method.get("penalty", "z") not in PENALTIES:
            raise ValueError(f"penalty {method['penalty']!r}: choose among {', '.join(PENALTIES)}")
        outside = method.get("optimizer") in ("lion", "lamb") or "rho" in method
        if outside and importlib.util.find_spec("pytorch_optimizer") is None:
            raise ValueError(f"method {name!r}: pip install --no-deps pytorch-optimizer==4.1.0")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A training run with the settings of its method, or the cost of a step if the job has ``pairs``."""
    methods = settings["methods"]
    method = methods[job["method"]]
    if "pairs" in job:
        return cost(method, methods["plain"], job["lr"], job["seed"], job["pairs"], job["plain_clip"])
    return {"of": method} | train(method, job["lr"], job["clip"], job["seed"], job["steps"])
