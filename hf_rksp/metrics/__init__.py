"""Metrics of probabilities for `evaluate`; each is a module that loads by its path.

import evaluate
from hf_rksp.metrics import path_of

auroc = evaluate.load(path_of("divergence_auroc"))
auroc.compute(predictions=[0.1, 0.8, 0.4], references=[0, 1, 0])
"""

from __future__ import annotations

from pathlib import Path

from hf_rksp.errors import InputError

NAMES = ("divergence_auroc", "calibration_error", "brier_score")


def path_of(name: str) -> str:
    """The path that ``evaluate.load`` takes.

    Raises:
        InputError: there is no such metric.

    >>> path_of("brier_score").endswith("brier_score")
    True
    """
    if name not in NAMES:
        raise InputError(f"name={name!r}: choose among {', '.join(NAMES)}")
    return str(Path(__file__).parent / name)
