"""What predicts for the published runs: the shipped model, the same from forward passes alone, and two that measure nothing.

python -m scripts.reproduce.published.models      fit them to the rows of ../risk, as the shipped one, and write models.json
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import torch

from hf_rksp.files import put_file
from hf_rksp.risk.calibrated import RiskModel, shipped
from scripts.evaluate_risk import FOLDER, fitted
from scripts.reproduce.risk.dataset import read
from scripts.reproduce.risk.figures import tenth
from scripts.reproduce.risk.methods import METHODS, NOTHING, OURS, PLAN, SHAPE, Method

#: Features of the shipped model that take gradients.
STEP = ("coordinate_lr", "without_curvature")
FORWARD = Method("forward passes", tuple(key for key in OURS.features if key not in STEP))
#: What needs no measurement: plan and shape; and one learning rate for all, the mean of the runs with AdamW.
UNMEASURED = Method("plan and shape", (*PLAN, *SHAPE))
_FILE = Path(__file__).parent / "models.json"


@functools.cache
def model(name: str) -> RiskModel:
    """A model of models.json: "forward passes", "plan and shape" or "mean".

    Outside of what it was fitted on it is as unsure as the shipped one: with fewer features it cannot be surer.
    """
    made = RiskModel.from_data(json.loads(_FILE.read_text(encoding="utf-8"))[name])
    whole = shipped("initialised").per_doubling
    return replace(made, per_doubling={key: max(value, whole[key]) for key, value in made.per_doubling.items()})


def main() -> None:
    """Fit and write."""
    torch.set_num_threads(1)
    rows = FOLDER / "results.jsonl"
    cases = [case for case in read(rows) if case.judged and all(each.has(case) for each in METHODS)]
    long = [case for case in read(FOLDER / "long.jsonl") if case.judged]
    adamw = [case for case in cases if case.plan.optimizer == "adamw"]
    found = {method.name: fitted(method, cases, long, rows, tenth) for method in (FORWARD, UNMEASURED)} | {
        "mean": fitted(NOTHING, adamw, long, rows, tenth)
    }
    put_file(_FILE, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
