"""Settings, checked where they are made. Imports nothing of the package but the errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from hf_rksp.errors import InputError


def _positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number above zero")


def _whole(name: str, value: int, least: int, remedy: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: {remedy or f'pass a whole number of at least {least}'}")


def _not_negative(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number, zero or more")


@dataclass(frozen=True)
class SpectralConfig:
    """Bands and cutoffs of the spectrum (RKSP, table of section 3.2; the symbols are the paper's).

    Attributes:
        expansive_margin: eps_u; a mode is expansive above ``1 + expansive_margin``.
        near_unit_margin: eps_n; a mode is near-unit from ``1 - near_unit_margin`` to ``1 + expansive_margin``.
        contractive_margin: delta_c; a mode is contractive below ``1 - contractive_margin``.
        residual_tolerance: tau; a mode with a larger ResDMD residual is unreliable.
        covariance_rcond: directions whose variance is below this share of the largest are dropped before whitening.
            Squared quantities in float64 cannot resolve less; in singular values of the states it is 1e-6.
        uninformative_update: a layer whose whitened update ``||Y - X|| / ||X||`` is below this is the identity up to
            rounding, and its near-unit mass says nothing.
        mass_smoothing: width of the soft band edges in the jackknife of the masses (a count is too rough for it).
    """

    expansive_margin: float = 0.05
    near_unit_margin: float = 0.10
    contractive_margin: float = 0.20
    residual_tolerance: float = 0.10
    covariance_rcond: float = 1e-12
    uninformative_update: float = 1e-3
    mass_smoothing: float = 0.01

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _positive(name, getattr(self, name))
        if not self.near_unit_margin <= self.contractive_margin < 1:
            raise InputError(
                f"near_unit_margin={self.near_unit_margin}, contractive_margin={self.contractive_margin}: the bands "
                "must not overlap, so near_unit_margin <= contractive_margin < 1"
            )
        if self.covariance_rcond >= 1:
            raise InputError(f"covariance_rcond={self.covariance_rcond}: it is a share of the largest, below 1")


@dataclass(frozen=True)
class RiskConfig:
    """Thresholds of the verdict (RKSP appendix J, Fig. 7).

    Attributes:
        safe_near_unit_mass: below this mean near-unit mass the paper calls a network safe.
        high_near_unit_mass: above this mean near-unit mass the paper calls the risk high.
        large_eigenvector_condition: the paper says "large kappa(V)" without a number. This one is ours: it is above
            what random matrices of width 2048 show, so a larger value is not explained by width alone.
        assessable_share: at least this share of the layers has to be informative for a verdict.
        least_modes: every layer has to show at least this many modes for a verdict.
    """

    safe_near_unit_mass: float = 0.3
    high_near_unit_mass: float = 0.5
    large_eigenvector_condition: float = 1e5
    assessable_share: float = 0.5
    least_modes: int = 8

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _positive(name, getattr(self, name))
        if not self.safe_near_unit_mass < self.high_near_unit_mass <= 1:
            raise InputError(
                f"safe_near_unit_mass={self.safe_near_unit_mass}, high_near_unit_mass={self.high_near_unit_mass}: "
                "it has to be safe < high <= 1"
            )
        if self.assessable_share > 1:
            raise InputError(f"assessable_share={self.assessable_share}: it is a share, at most 1")


@dataclass(frozen=True)
class KSSConfig:
    """Settings of the spectral regulariser (RKSP section 3.3, Eq. 14-15; names in brackets are the paper's).

    Two schedules. ``"balanced"``, the default, is ours: at every step the gradient of a one-sided penalty is taken to the
    hidden states, and added to the backward pass there, no larger than ``weight`` times the task's gradient at the end of the
    residual stream. ``"paper"`` is the published recipe: Eq. 14 is added to the loss every ``every`` steps. What is ``None``
    gets the default of the schedule.

    Attributes:
        schedule: "balanced" or "paper".
        weight: balanced: largest share of the task's gradient (default 1). paper: factor of the penalty (alpha, 0.15).
            0 switches KSS off.
        every: optimizer steps from one use to the next (balanced 1, paper 10).
        layer_fraction: share of the layers that are drawn at each use (balanced 1, paper 0.5).
        first_block_weight: of the first block of every stack, as a share of ``weight`` (balanced 0.3, paper 1). That block
            makes a stream of the embeddings, which are small: its modulus is large in healthy runs too, and to push on it as
            on the others costs what is learnt. A block that is alone in its stack has the full weight.
        rank: directions that the states are projected on (r). ``None`` is 32, or the width of the layer where that is less;
            a rank that is asked for has to fit the narrowest layer.
        upper_threshold: moduli above it are penalised (tau_u).
        lower_threshold: paper: lower end of the near-unit band (tau_l).
        near_unit_target: paper: share of near-unit modes that is aimed at (gamma).
        near_unit_weight: paper: weight of that aim (beta; the paper gives no number).
        temperature: paper: steepness of the sigmoids (T).
        ridge: added to the covariance in whitening and regression. balanced: relative to its mean eigenvalue (1e-2).
            paper: absolute (1e-5).
        centred: take the means out (paper). Then growth of the mean itself, which is what a network without normalisation
            diverges by, is not seen (balanced keeps the means).
        exact_accumulation: with gradient accumulation, measure all microbatches of a step before the first is trained on: the
            run is then that of one large batch, for a forward pass and 24 d^2 bytes a layer more. Without it the
            operator is that of each microbatch.
        seed: of the directions and the draw of layers; both also depend on the step, and on nothing else.
    """

    schedule: Literal["balanced", "paper"] = "balanced"
    weight: float = None  # type: ignore[assignment]
    every: int = None  # type: ignore[assignment]
    layer_fraction: float = None  # type: ignore[assignment]
    first_block_weight: float = None  # type: ignore[assignment]
    rank: int = None  # type: ignore[assignment]
    upper_threshold: float = 1.05
    lower_threshold: float = 0.90
    near_unit_target: float = 0.4
    near_unit_weight: float = 1.0
    temperature: float = 20.0
    ridge: float = None  # type: ignore[assignment]
    centred: bool = None  # type: ignore[assignment]
    exact_accumulation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in _KSS_DEFAULTS:
            raise InputError(f"schedule={self.schedule!r}: pass {' or '.join(map(repr, _KSS_DEFAULTS))}")
        for name, value in _KSS_DEFAULTS[self.schedule].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.rank is not None:
            _whole("rank", self.rank, 1)
        for name, least in (("every", 1), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("upper_threshold", "lower_threshold", "temperature", "ridge"):
            _positive(name, getattr(self, name))
        for name in ("weight", "first_block_weight", "near_unit_weight"):
            _not_negative(name, getattr(self, name))
        for name in ("near_unit_target", "layer_fraction"):
            _not_negative(name, getattr(self, name))
        if self.near_unit_target > 1:
            raise InputError(f"near_unit_target={self.near_unit_target}: it is a share, from 0 to 1")
        if not 0 < self.layer_fraction <= 1:
            raise InputError(f"layer_fraction={self.layer_fraction}: it is a share, above 0 and at most 1")
        if self.schedule == "paper" and self.lower_threshold >= self.upper_threshold:
            raise InputError(
                f"lower_threshold={self.lower_threshold}, upper_threshold={self.upper_threshold}: lower has to be below upper"
            )

    def fitted(self, width: int) -> KSSConfig:
        """These settings for states of ``width`` dimensions: with a rank, where it was left to its default."""
        return self if self.rank is not None else replace(self, rank=min(_KSS_RANK, width))


#: Rank where none is asked for, in states that are wide enough.
_KSS_RANK = 32
#: What the schedules differ in.
_KSS_DEFAULTS: dict[str, dict[str, float | int | bool]] = {
    "balanced": {
        "weight": 1.0,
        "every": 1,
        "layer_fraction": 1.0,
        "first_block_weight": 0.3,
        "ridge": 1e-2,
        "centred": False,
    },
    "paper": {
        "weight": 0.15,
        "every": 10,
        "layer_fraction": 0.5,
        "first_block_weight": 1.0,
        "ridge": 1e-5,
        "centred": True,
    },
}


@dataclass(frozen=True)
class MonitorConfig:
    """When and on what a training run is profiled.

    Attributes:
        every: optimizer steps from one profile to the next; 0 for none but at the start and at the end.
        at_start, at_end: profile the first and the last step whatever ``every`` says.
        data: "batch" takes the states of the training batch itself, without a forward pass of its own (dropout is on);
            "probe" runs a fixed set of batches in evaluation mode.
        rank: directions that the states are projected on; less where the batch has fewer than two tokens for each.
        per_layer: also log the near-unit mass and spectral radius of every layer.
        report: draw the whole run as a page at the end.
    """

    every: int = 500
    at_start: bool = True
    at_end: bool = True
    data: Literal["batch", "probe"] = "batch"
    rank: int = 64
    per_layer: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        _whole("every", self.every, 0, "pass a number of steps, or 0 for the start and the end alone")
        _whole("rank", self.rank, 1)
        if self.data not in ("batch", "probe"):
            raise InputError(f"data={self.data!r}: pass 'batch' or 'probe'")

    def due(self, step: int, last_step: int) -> bool:
        """Whether ``step`` is profiled, in a run whose last step is ``last_step``."""
        regular = self.every > 0 and step > 0 and step % self.every == 0
        return regular or (self.at_start and step == 0) or (self.at_end and step == last_step)
