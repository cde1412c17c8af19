"""Fit the learning rate at which runs are lost, with its scatter.

One configuration ``c`` has the threshold ``t_c = w . x_c + b + u_c`` in log2 of the learning rate, with a random effect
``u_c ~ N(0, between^2)``. A run of it at learning rate ``lr`` is lost with probability ``Phi((log2 lr - t_c) / within)``. So the
probability rises with the learning rate by construction, features do not depend on the planned one, and for a new configuration

    P(lost) = Phi((log2 lr - w . x - b) / sqrt(within^2 + between^2))

A small share of the runs ends otherwise for a reason of its own (a single spike of the gradient counts as an explosion). The
likelihood allows for it as psychometric functions do (a lapse rate): without it, one such run far from the threshold moves it.

The likelihood of each configuration is the integral over its random effect (Gauss-Hermite), so that 30 runs of one configuration
count as one observation of its threshold and not as 30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from scipy.optimize import minimize
from torch import Tensor

from hf_rksp.errors import InputError

#: Points of the Gauss-Hermite rule.
_NODES = 15
#: Share of the runs that end otherwise than their learning rate says.
_LAPSE = 0.02


@dataclass(frozen=True)
class Outcomes:
    """Runs by configuration.

    Attributes:
        features: shape ``(configurations, features)``, finite.
        log2_lr: per configuration, shape ``(runs,)``.
        lost: per configuration, shape ``(runs,)`` of booleans.
    """

    features: numpy.ndarray
    log2_lr: Sequence[numpy.ndarray]
    lost: Sequence[numpy.ndarray]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.log2_lr) == len(self.lost) > 0:
            raise InputError(
                f"features, log2_lr and lost have {len(self.features)}, {len(self.log2_lr)} and {len(self.lost)} configurations: "
                "pass one entry per configuration, and at least one"
            )
        if not numpy.isfinite(self.features).all():
            raise InputError("features: some are not finite; leave those configurations out, or fill in a number")

    def take(self, chosen: Sequence[int] | numpy.ndarray) -> Outcomes:
        """The chosen configurations, each as often as it is named."""
        return Outcomes(self.features[chosen], [self.log2_lr[i] for i in chosen], [self.lost[i] for i in chosen])


@dataclass(frozen=True)
class Fit:
    """The fitted model, in standardised features ``(x - mean) / scale``.

    Attributes:
        mean, scale: of each feature, shape ``(features,)``.
        weights: shape ``(features,)``, in log2 of a learning rate per standard deviation.
        bias: log2 of a learning rate.
        within: scatter of runs of one configuration, in log2.
        between: scatter of the thresholds of configurations around their prediction, in log2.
    """

    mean: numpy.ndarray
    scale: numpy.ndarray
    weights: numpy.ndarray
    bias: float
    within: float
    between: float

    def log2_threshold(self, features: numpy.ndarray) -> numpy.ndarray:
        """log2 of the learning rate with P(lost) = 1/2, shape ``(configurations,)``."""
        return numpy.asarray(((features - self.mean) / self.scale) @ self.weights + self.bias)

    @property
    def spread(self) -> float:
        """Standard deviation of log2 of the learning rate at which a run of a new configuration is lost."""
        return math.hypot(self.within, self.between)


def fit(outcomes: Outcomes, ridge: float = 1.0, start: Fit | None = None) -> Fit:
    """Maximise the likelihood, with a penalty ``ridge/2 |w|^2`` on the standardised weights.

    Args:
        outcomes: see `Outcomes`.
        ridge: in units of one configuration.
        start: a fit of similar runs, from which the search begins.

    Raises:
        InputError: no run is lost, or every one is.
    """
    every = numpy.concatenate(list(outcomes.lost))
    if every.all() or not every.any():
        raise InputError(f"lost: {'every' if every.all() else 'no'} run is lost; there is no threshold to fit")
    mean, scale = outcomes.features.mean(0), outcomes.features.std(0)
    scale = numpy.where(scale > 1e-12, scale, 1.0)
    x = torch.from_numpy((outcomes.features - mean) / scale)
    lr, sign, there = _padded(outcomes)
    nodes, mass = numpy.polynomial.hermite_e.hermegauss(_NODES)
    u, log_mass = torch.from_numpy(nodes), torch.from_numpy(numpy.log(mass / mass.sum()))

    def loss(values: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        p = torch.from_numpy(values).requires_grad_()
        weights, bias, within, between = p[:-3], p[-3], p[-2].exp(), p[-1].exp()
        threshold = (x @ weights + bias)[:, None] + between * u
        z = (lr[:, :, None] - threshold[:, None, :]) / within
        p_seen = _LAPSE / 2 + (1 - _LAPSE) * torch.special.ndtr(sign[:, :, None] * z)
        each = (p_seen.log() * there[:, :, None]).sum(1)
        total = -torch.logsumexp(each + log_mass, 1).sum() + ridge / 2 * (weights @ weights)
        total = (
            total + 0.5 * ((p[-2:] - math.log(0.7)) / 1.5).square().sum()
        )  # keeps a scatter finite where few runs tell
        total.backward()
        assert p.grad is not None
        return float(total.detach()), p.grad.numpy()

    middle = float(numpy.median(numpy.concatenate(list(outcomes.log2_lr))))
    first = numpy.concatenate([numpy.zeros(x.shape[1]), [middle, 0.0, 0.0]])
    if start is not None:
        first = numpy.concatenate([start.weights, [start.bias, math.log(start.within), math.log(start.between)]])
    best = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Fit(mean, scale, best[:-3], float(best[-3]), math.exp(best[-2]), math.exp(best[-1]))


def _padded(outcomes: Outcomes) -> tuple[Tensor, Tensor, Tensor]:
    """log2 of the learning rates, +1 for lost and -1 for not, and whether there is a run: shape (configurations, most runs)."""
    most = max(len(rates) for rates in outcomes.log2_lr)
    lr, sign, there = (torch.zeros(len(outcomes.log2_lr), most, dtype=torch.float64) for _ in range(3))
    for place, (rates, lost) in enumerate(zip(outcomes.log2_lr, outcomes.lost, strict=True)):
        lr[place, : len(rates)] = torch.from_numpy(numpy.asarray(rates, dtype=numpy.float64))
        sign[place, : len(rates)] = torch.from_numpy(numpy.where(lost, 1.0, -1.0))
        there[place, : len(rates)] = 1
    return lr, sign, there
