"""Expected calibration error of predicted probabilities."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy

from hf_rksp.metrics.bins import calibration_error

_DESCRIPTION = """
Mean over all runs of |share of lost runs - mean probability| of their bin (Naeini et al., AAAI 2015). Bins are of equal width, or
hold equally many runs.
"""
_INPUTS = """
Args:
    predictions: probability that each run is lost, from 0 to 1.
    references: 1 for a run that was lost, else 0.
    bins: 10 by default.
    equal_mass: bins that hold equally many runs, instead of bins of equal width.
Returns:
    calibration_error.
"""


class CalibrationError(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(
        self, predictions: Sequence[float], references: Sequence[int], bins: int = 10, equal_mass: bool = False
    ) -> dict[str, float]:
        p, lost = numpy.asarray(predictions, float), numpy.asarray(references, float)
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("predictions: pass probabilities from 0 to 1")
        if bins < 1:
            raise ValueError(f"bins={bins!r}: pass a whole number of at least 1")
        return {"calibration_error": calibration_error(p, lost, numpy.ones(len(p)), bins, equal_mass)}
