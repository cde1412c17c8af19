"""Settings, checked where they are made. Imports nothing of the package but the errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_rksp.errors import InputError


def _positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number above zero")


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
    """Settings of the spectral penalty (RKSP section 3.3, Eq. 14-15; names in brackets are the paper's).

    Attributes:
        rank: directions that the states are projected on (r).
        upper_threshold: moduli above it are penalised (tau_u).
        lower_threshold: lower end of the near-unit band (tau_l).
        near_unit_target: share of near-unit modes that is aimed at (gamma).
        near_unit_weight: weight of that aim (beta; the paper gives no number).
        temperature: steepness of the sigmoids (T).
        ridge: added to the covariance in whitening and regression, relative to its mean eigenvalue.
        centred: take the means out, as the paper does. Then growth of the mean itself is not seen.
    """

    rank: int = 32
    upper_threshold: float = 1.05
    lower_threshold: float = 0.90
    near_unit_target: float = 0.4
    near_unit_weight: float = 1.0
    temperature: float = 20.0
    ridge: float = 1e-2
    centred: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"rank={self.rank!r}: pass a whole number of at least 1")
        for name in ("upper_threshold", "lower_threshold", "temperature", "ridge"):
            _positive(name, getattr(self, name))
        if not 0 <= self.near_unit_target <= 1:
            raise InputError(f"near_unit_target={self.near_unit_target}: it is a share, from 0 to 1")
        if not self.near_unit_weight >= 0:
            raise InputError(f"near_unit_weight={self.near_unit_weight}: pass zero or more")
        if self.lower_threshold >= self.upper_threshold:
            raise InputError(
                f"lower_threshold={self.lower_threshold}, upper_threshold={self.upper_threshold}: lower has to be below upper"
            )
