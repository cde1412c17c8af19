"""Area under the ROC curve of predicted probabilities that a run is lost, with a bootstrap interval."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy
from sklearn.metrics import roc_auc_score

_DESCRIPTION = """
Probability that a lost run has a higher score than a run that is not lost; ties count half. The interval is a percentile
bootstrap over runs, or over groups of runs if `groups` is given: runs of one configuration are no independent draws.
"""
_INPUTS = """
Args:
    predictions: probability, or any score, that each run is lost.
    references: 1 for a run that was lost, else 0.
    groups: one name per run; runs of one group are drawn together.
    level: of the interval, 0.95 by default.
    draws: of the bootstrap, 1000 by default; 0 for no interval.
    seed: of the bootstrap.
Returns:
    auroc, interval (lower and upper end, or None).
"""


class DivergenceAUROC(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[int],
        groups: Sequence[Any] | None = None,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        scores, lost = numpy.asarray(predictions, float), numpy.asarray(references)
        if not numpy.isin(lost, (0, 1)).all() or lost.min() == lost.max():
            raise ValueError("references: pass zeros and ones, and at least one of each")
        if not numpy.isfinite(scores).all():
            raise ValueError("predictions: some are not finite")
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}: pass a number between 0 and 1")
        names = (
            numpy.arange(len(lost)) if groups is None else numpy.unique(numpy.asarray(groups), return_inverse=True)[1]
        )
        if len(names) != len(lost):
            raise ValueError(f"groups has {len(names)} entries, and references {len(lost)}: pass one per run")
        found: dict[str, Any] = {"auroc": float(roc_auc_score(lost, scores)), "interval": None}
        if draws:
            members = [numpy.flatnonzero(names == name) for name in range(names.max() + 1)]
            dice, values = numpy.random.default_rng(seed), []
            for _ in range(draws):
                drawn = numpy.concatenate([members[place] for place in dice.integers(len(members), size=len(members))])
                if lost[drawn].min() != lost[drawn].max():
                    values.append(roc_auc_score(lost[drawn], scores[drawn]))
            ends = numpy.quantile(values, ((1 - level) / 2, (1 + level) / 2)) if values else (numpy.nan, numpy.nan)
            found["interval"] = [float(end) for end in ends]
        return found
