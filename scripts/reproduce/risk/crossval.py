"""Predictions for configurations that a fit has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy

from hf_rksp.risk.fit import fit
from scripts.reproduce.risk.dataset import Case
from scripts.reproduce.risk.methods import Method
from scripts.reproduce.risk.scores import Predicted, first_stage_loss

#: Chosen beforehand, in units of one configuration.
RIDGE = 10.0


def predict(method: Method, known: Sequence[Case], asked: Sequence[Case]) -> list[Predicted]:
    """Fit to ``known`` and predict ``asked``, with the scatter of the fit."""
    made = fit(method.outcomes(known), RIDGE)
    thresholds = made.log2_threshold(method.outcomes(asked).features)
    return [Predicted(case, float(at), made.spread) for case, at in zip(asked, thresholds, strict=True)]


def left_out(method: Method, cases: Sequence[Case], key: Callable[[Case], Hashable]) -> list[Predicted]:
    """Predictions for each group by the fit to all others, with the scatter that the other groups show when they are left out.

    The scatter of a fit is that of configurations like those it has seen; that of groups it has not seen is wider.
    """
    groups: dict[Hashable, list[Predicted]] = {}
    for group in sorted({key(case) for case in cases}, key=str):
        known, asked = ([case for case in cases if (key(case) == group) == mine] for mine in (False, True))
        groups[group] = predict(method, known, asked)
    found = []
    for group, predicted in groups.items():
        spread = spread_of([one for other, mine in groups.items() if other != group for one in mine])
        found += [replace(one, spread=spread) for one in predicted]
    return found


def spread_of(predicted: Sequence[Predicted]) -> float:
    """The scatter with the least log loss over the first stage, whose learning rates do not depend on what came out.

    Runs near the edge of each configuration would make it too wide: half of them are lost by choice.
    """
    candidates = numpy.geomspace(0.25, 6, 49)
    losses = [
        math.fsum(first_stage_loss(replace(one, spread=float(candidate))) for one in predicted)
        for candidate in candidates
    ]
    return float(candidates[int(numpy.argmin(losses))])
