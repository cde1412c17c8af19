"""How good predicted probabilities and learning rates are; every configuration weighs the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
from scipy.special import log_ndtr, ndtr
from sklearn.metrics import roc_auc_score

from hf_rksp.metrics.bins import calibration_error
from scripts.reproduce.risk.dataset import Case


@dataclass(frozen=True)
class Predicted:
    """What a method says of one configuration: log2 of the threshold, and the scatter of the runs around it."""

    case: Case
    log2_threshold: float
    spread: float

    def p(self) -> numpy.ndarray:
        """P(lost) of the runs that are scored."""
        return numpy.asarray(ndtr((numpy.log2(self.case.lr[self.case.near]) - self.log2_threshold) / self.spread))


def first_stage_loss(predicted: Predicted) -> float:
    """Mean log loss over the runs of the first stage of one configuration."""
    case = predicted.case
    z = (numpy.log2(case.lr[case.coarse]) - predicted.log2_threshold) / predicted.spread
    return -float(numpy.where(case.lost[case.coarse], log_ndtr(z), log_ndtr(-z)).mean())


@dataclass(frozen=True)
class Scores:
    """Scores of a method.

    Attributes:
        auroc: within a family, the mean over the families.
        brier, log_loss, ece: over the runs near the edge. Half of those are lost by choice, so the ECE of a calibrated model is
            not 0.
        coarse_ece: over the runs of the first stage, whose learning rates do not depend on what came out.
        within_2, within_1_5: shares of the configurations whose lr* is predicted within that factor.
        median_factor: median of the factor between predicted and true lr*.
    """

    auroc: float
    brier: float
    log_loss: float
    ece: float
    coarse_ece: float
    within_2: float
    within_1_5: float
    median_factor: float


def score(predicted: Sequence[Predicted]) -> Scores:
    """Score predictions for configurations that have an edge."""
    scored = [one for one in predicted if one.case.edge is not None]
    p = numpy.concatenate([one.p() for one in scored])
    lost = numpy.concatenate([one.case.lost[one.case.near] for one in scored])
    weight = numpy.concatenate([numpy.full(n, 1 / n) for one in scored if (n := int(one.case.near.sum()))])
    weight = weight / weight.sum()
    family = numpy.concatenate([numpy.full(int(one.case.near.sum()), one.case.family) for one in scored])
    clipped = p.clip(1e-6, 1 - 1e-6)
    factor = numpy.array([abs(one.log2_threshold - math.log2(one.case.edge or 1)) for one in scored])
    return Scores(
        auroc=_auroc(p, lost, weight, family),
        brier=float((weight * (p - lost) ** 2).sum()),
        log_loss=float(-(weight * numpy.where(lost, numpy.log(clipped), numpy.log(1 - clipped))).sum()),
        ece=calibration_error(p, lost, weight),
        coarse_ece=_coarse_error(scored),
        within_2=within(scored),
        within_1_5=within(scored, 1.5),
        median_factor=float(2 ** numpy.median(factor)),
    )


def _auroc(p: numpy.ndarray, lost: numpy.ndarray, weight: numpy.ndarray, family: numpy.ndarray) -> float:
    values = []
    for name in numpy.unique(family):
        mine = family == name
        if lost[mine].any() and not lost[mine].all():
            values.append(roc_auc_score(lost[mine], p[mine], sample_weight=weight[mine]))
    return float(numpy.mean(values))


def _coarse_error(scored: Sequence[Predicted]) -> float:
    p = [ndtr((numpy.log2(one.case.lr[one.case.coarse]) - one.log2_threshold) / one.spread) for one in scored]
    lost = [one.case.lost[one.case.coarse] for one in scored]
    weight = [numpy.full(len(each), 1 / len(each)) for each in p]
    return calibration_error(numpy.concatenate(p), numpy.concatenate(lost), numpy.concatenate(weight))


def within(predicted: Sequence[Predicted], factor: float = 2.0) -> float:
    """Share of the configurations whose lr* is predicted within ``factor``."""
    errors = [abs(one.log2_threshold - math.log2(one.case.edge)) for one in predicted if one.case.edge]
    return float(numpy.mean(numpy.array(errors) <= math.log2(factor)))


def bootstrap(
    predicted: Sequence[Predicted],
    quantity: Callable[[Sequence[Predicted]], float],
    draws: int = 400,
    by_family: bool = True,
    seed: int = 0,
) -> tuple[float, float]:
    """95% interval: groups of families are drawn with replacement, and configurations within each.

    Args:
        by_family: ``False`` draws configurations alone, where families are not what is left out.
    """
    dice = numpy.random.default_rng(seed)
    groups: dict[int, list[Predicted]] = {}
    for one in predicted:
        groups.setdefault(one.case.group if by_family else 0, []).append(one)
    names = list(groups)
    values = []
    for _ in range(draws):
        drawn: list[Predicted] = []
        for name in dice.choice(names, len(names)):
            mine = groups[int(name)]
            drawn += [mine[int(place)] for place in dice.integers(len(mine), size=len(mine))]
        values.append(quantity(drawn))
    low, high = numpy.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)
