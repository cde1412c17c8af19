"""Settings of the spectrum and of the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_rksp.config.checks import require_positive
from hf_rksp.errors import InputError


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
        replicate_precision: of the eigenvalues in the replicates of the jackknife. ``"auto"``: float32 in a layer where rounding
            changes no standard error by more than an estimated 1% (`hf_rksp.profile.replicates`), else float64. ``"float64"``:
            float64 in every layer. All other numbers are in float64 always.
    """

    expansive_margin: float = 0.05
    near_unit_margin: float = 0.10
    contractive_margin: float = 0.20
    residual_tolerance: float = 0.10
    covariance_rcond: float = 1e-12
    uninformative_update: float = 1e-3
    mass_smoothing: float = 0.01
    replicate_precision: Literal["auto", "float64"] = "auto"

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name != "replicate_precision":
                require_positive(name, getattr(self, name))
        if self.replicate_precision not in ("auto", "float64"):
            raise InputError(f"replicate_precision={self.replicate_precision!r}: pass 'auto' or 'float64'")
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
            require_positive(name, getattr(self, name))
        if not self.safe_near_unit_mass < self.high_near_unit_mass <= 1:
            raise InputError(
                f"safe_near_unit_mass={self.safe_near_unit_mass}, high_near_unit_mass={self.high_near_unit_mass}: "
                "it has to be safe < high <= 1"
            )
        if self.assessable_share > 1:
            raise InputError(f"assessable_share={self.assessable_share}: it is a share, at most 1")
