"""The check of the fit: another likelihood, of one interval per configuration instead of its runs.

lr* lies between the last surviving and the first lost learning rate of a configuration, or beyond the rates that were tried. If
log2 lr* = w . x + b + e with e ~ N(0, s^2), the likelihood of one configuration is

    Phi((high - w . x - b) / s) - Phi((low - w . x - b) / s)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy
from scipy.optimize import minimize
from scipy.special import log_ndtr

from scripts.reproduce.risk.crossval import RIDGE
from scripts.reproduce.risk.dataset import Case
from scripts.reproduce.risk.methods import Method


def bracket(case: Case) -> tuple[float, float]:
    """log2 of the learning rates between which lr* lies; infinite where no rate was tried."""
    if case.edge is None:
        rates = numpy.log2(case.lr)
        return (-math.inf, float(rates.min())) if case.lost.all() else (float(rates.max()), math.inf)
    below, above = case.lr[case.lr < case.edge], case.lr[case.lr > case.edge]
    return float(numpy.log2(below.max())), float(numpy.log2(above.min()))


def thresholds(method: Method, known: Sequence[Case], asked: Sequence[Case]) -> numpy.ndarray:
    """log2 lr* of ``asked`` by the fit to ``known``, with the same penalty on the weights as the model has."""
    x = method.outcomes(known).features
    mean, scale = x.mean(0), numpy.maximum(x.std(0), 1e-12)
    x = (x - mean) / scale
    low, high = numpy.array([bracket(case) for case in known]).T

    def loss(values: numpy.ndarray) -> float:
        centre, scatter = x @ values[:-2] + values[-2], math.exp(values[-1])
        upper, lower = log_ndtr((high - centre) / scatter), log_ndtr((low - centre) / scatter)
        # log(Phi(high) - Phi(low)); far above the centre both are 1 in floating point, and the other tail is exact
        mirrored_upper, mirrored_lower = log_ndtr((centre - low) / scatter), log_ndtr((centre - high) / scatter)
        right = upper > mirrored_upper
        more, less = numpy.where(right, mirrored_upper, upper), numpy.where(right, mirrored_lower, lower)
        each = more + numpy.log1p(-numpy.exp(numpy.minimum(less - more, -1e-12)))
        return float(-each.sum() + RIDGE / 2 * values[:-2] @ values[:-2])

    middle = numpy.median([math.log2(case.edge) for case in known if case.edge])
    best = minimize(loss, numpy.concatenate([numpy.zeros(x.shape[1]), [middle, 0.5]]), method="L-BFGS-B").x
    return numpy.asarray((method.outcomes(asked).features - mean) / scale @ best[:-2] + best[-2])


def left_out(method: Method, cases: Sequence[Case], key: Callable[[Case], Hashable]) -> dict[int, float]:
    """log2 lr* of each configuration, by its number, from the fit to the other groups."""
    found = {}
    for group in {key(case) for case in cases}:
        asked = [case for case in cases if key(case) == group]
        known = [case for case in cases if key(case) != group]
        found |= {
            int(case.row["seed"]): float(at) for case, at in zip(asked, thresholds(method, known, asked), strict=True)
        }
    return found
