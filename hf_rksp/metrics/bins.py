"""The calibration error that the metric for `evaluate` and the scores of the risk model share."""

from __future__ import annotations

import numpy


def calibration_error(
    p: numpy.ndarray, outcome: numpy.ndarray, weight: numpy.ndarray, bins: int = 10, equal_mass: bool = False
) -> float:
    """Mean of ``|share of outcomes - mean probability|`` over the bins, each with its weight (Naeini et al., AAAI 2015).

    Args:
        p: probabilities from 0 to 1, shape ``(n,)``.
        outcome: 0 or 1, shape ``(n,)``.
        weight: shape ``(n,)``; their scale does not matter.
        bins: number of bins.
        equal_mass: bins that hold equally many entries, instead of bins of equal width.

    >>> calibration_error(numpy.array([0.2, 0.9]), numpy.array([0, 1]), numpy.ones(2))
    0.15
    """
    if equal_mass:
        parts = numpy.array_split(numpy.argsort(p, kind="stable"), bins)
    else:
        place = numpy.minimum((p * bins).astype(int), bins - 1)
        parts = [numpy.flatnonzero(place == each) for each in numpy.unique(place)]
    gaps = (abs(float((weight[part] * (outcome[part] - p[part])).sum())) for part in parts)
    return sum(gaps) / float(weight.sum())
