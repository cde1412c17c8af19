"""Brier score of predicted probabilities, and its skill over the base rate."""

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import brier_score_loss

_DESCRIPTION = """
Mean squared difference of the probability and the outcome (Brier 1950). The skill is 1 - score / score of always predicting the
share of lost runs.
"""
_INPUTS = """
Args:
    predictions: probability that each run is lost, from 0 to 1.
    references: 1 for a run that was lost, else 0.
Returns:
    brier_score, skill (None if all outcomes are equal).
"""


class BrierScore(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float | None]:
        share = sum(references) / len(references)
        score = float(brier_score_loss(references, predictions, pos_label=1))
        base = share * (1 - share)
        return {"brier_score": score, "skill": 1 - score / base if base else None}
