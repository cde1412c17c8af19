"""Estimates with 95% confidence intervals, as all tables state them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """An estimate from ``count`` values; NaN where there are too few values to say anything."""

    value: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 3) -> str:
        """ "1.174 [1.134, 1.214]"; without the interval if there is one value, "-" if there is none."""
        if math.isnan(self.value):
            return "-"
        interval = "" if math.isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{interval}"


def share(hits: int, count: int) -> Estimate:
    """The share of hits with the exact interval of Clopper and Pearson (Biometrika 26, 1934)."""
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    interval = stats.binomtest(hits, count).proportion_ci(LEVEL, method="exact")
    return Estimate(hits / count, float(interval.low), float(interval.high), count)


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval, for values that are independent and roughly normal."""
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.nan, len(values))
    average = sum(values) / len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(average, average - half, average + half, len(values))


def fewer(first: tuple[int, int], second: tuple[int, int]) -> float:
    """p of Fisher's exact test that the first share is no smaller than the second; each is hits, of how many."""
    return float(stats.fisher_exact([[hits, count - hits] for hits, count in (first, second)], "less").pvalue)


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> Estimate:
    """The mean of ``first`` minus ``second``, paired by key (the seed), with Student's interval; other keys are left out."""
    return mean([first[key] - second[key] for key in sorted(set(first) & set(second))])
