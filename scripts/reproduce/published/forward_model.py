"""The risk model for networks that are too large for gradients: the shipped one without the features that take a step.

python -m scripts.reproduce.published.forward_model      fit it to the rows of ../risk, as the shipped one, and write forward.json
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from hf_rksp.files import put_file
from hf_rksp.risk.calibrated import RiskModel, shipped
from scripts.evaluate_risk import FOLDER, fitted
from scripts.reproduce.risk.dataset import read
from scripts.reproduce.risk.figures import tenth
from scripts.reproduce.risk.methods import METHODS, OURS

#: Features of the shipped model that take gradients.
STEP = ("coordinate_lr", "without_curvature")
_FILE = Path(__file__).parent / "forward.json"


def forward_model() -> RiskModel:
    """The model of forward.json.

    Outside of what it was fitted on it is as unsure as the shipped one: with fewer features it cannot be surer.
    """
    model = RiskModel.from_data(json.loads(_FILE.read_text(encoding="utf-8")))
    whole = shipped("initialised").per_doubling
    return replace(model, per_doubling={name: max(value, whole[name]) for name, value in model.per_doubling.items()})


def main() -> None:
    """Fit and write."""
    torch.set_num_threads(1)
    method = replace(OURS, name="forward passes", features=tuple(key for key in OURS.features if key not in STEP))
    rows = FOLDER / "results.jsonl"
    cases = [case for case in read(rows) if case.judged and all(each.has(case) for each in METHODS)]
    long = [case for case in read(FOLDER / "long.jsonl") if case.judged]
    put_file(_FILE, (json.dumps(fitted(method, cases, long, rows, tenth), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
