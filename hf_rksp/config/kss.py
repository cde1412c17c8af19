"""Settings of the spectral regulariser."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from hf_rksp.config.checks import require_flag, require_not_negative, require_positive, require_whole, setting
from hf_rksp.errors import InputError


class KSSConfig:
    """Settings of the spectral regulariser (RKSP section 3.3, Eq. 14-15), by schedule.

    ``KSSConfig(schedule="paper", ...)`` makes a `PaperKSSConfig`; without a schedule it makes a `BalancedKSSConfig`, the default.

    Raises:
        InputError: the schedule has no such setting, or the value is not possible.
    """

    schedule: str
    weight: float
    every: int
    layer_fraction: float
    first_block_weight: float
    rank: int | None
    upper_threshold: float
    ridge: float
    centred: bool
    exact_accumulation: bool
    seed: int
    #: The settings of every schedule are a dataclass; this base is none.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __new__(cls, schedule: Any = None, *args: Any, **settings: Any) -> KSSConfig:
        """The settings of ``schedule``."""
        if cls is KSSConfig:
            schedule = "balanced" if schedule is None else schedule
            if schedule not in KSS_SCHEDULES:
                raise InputError(f"schedule={schedule!r}: pass {' or '.join(map(repr, KSS_SCHEDULES))}")
            cls = KSS_SCHEDULES[schedule]
            known = [one.name for one in fields(cls)]
            if unknown := [name for name in settings if name not in known]:
                raise InputError(
                    f"{unknown[0]}={settings[unknown[0]]!r}: the schedule {schedule!r} has no such setting; it has "
                    f"{', '.join(known)}"
                )
        return object.__new__(cls)

    def fitted(self, width: int) -> KSSConfig:
        """These settings for states of ``width`` dimensions: with a rank, if none was asked for."""
        return self if self.rank is not None else replace(self, rank=min(_KSS_RANK, width))

    def _check(self) -> None:
        own = next(name for name, kind in KSS_SCHEDULES.items() if isinstance(self, kind))
        if self.schedule != own:
            raise InputError(
                f"schedule={self.schedule!r}: pass {own!r}, or make the settings with KSSConfig(schedule=...)"
            )
        for name in ("centred", "exact_accumulation"):
            require_flag(name, getattr(self, name))
        if self.rank is not None:
            require_whole("rank", self.rank, 1)
        for name, least in (("every", 1), ("seed", 0)):
            require_whole(name, getattr(self, name), least)
        for name in ("upper_threshold", "ridge"):
            require_positive(name, getattr(self, name))
        for name in ("weight", "first_block_weight", "layer_fraction"):
            require_not_negative(name, getattr(self, name))
        if not 0 < self.layer_fraction <= 1:
            raise InputError(f"layer_fraction={self.layer_fraction}: it is a share, above 0 and at most 1")


#: Help of the settings that both schedules have.
_HELP = {
    "every": "optimizer steps from one use of KSS to the next",
    "layer_fraction": "share of the layers drawn at each use",
    "first_block_weight": "weight of the first block, relative to kss_weight",
    "rank": "directions that the states are projected on, at most the width of the model; default 32, or that width",
    "upper_threshold": "moduli above it are penalised",
    "centred": "take the means of the states out before the operator is fitted",
    "exact_accumulation": "measure all microbatches of a step before the first is trained on, so that 8 batches of 1 are 1 batch "
    "of 8; a step takes about 60%% longer than with KSS alone, and 24 d^2 bytes per layer",
    "seed": "seed of the directions and of the draw of layers",
}


@dataclass(frozen=True)
class BalancedKSSConfig(KSSConfig):
    """The default schedule, ours: at every step the gradient of a one-sided penalty is added at the hidden states.

    The one-sided penalty is the squared excess of the moduli over ``upper_threshold``. What is added to a sequence is no larger
    than ``weight`` times the task's gradient of that sequence at the end of the residual stream.

    Attributes:
        weight: largest size of what is added, relative to the task's gradient. 0 switches KSS off.
        every: optimizer steps from one use to the next.
        layer_fraction: share of the layers that are drawn at each use.
        first_block_weight: weight of the first block of each stack, relative to ``weight``. That block makes a stream from the
            small embeddings, so its modulus is large in healthy runs too. A block that is alone in its stack has the full weight.
        rank: directions that the states are projected on (r); ``None`` is 32, or the width of the layer if that is less.
        upper_threshold: moduli above it are penalised (tau_u).
        ridge: added to the covariance in whitening and regression, relative to its mean eigenvalue.
        centred: take the means out. Then growth of the mean itself, by which a network without normalisation diverges, is not seen.
        exact_accumulation: with gradient accumulation, measure all microbatches of a step before the first is trained on. The run
            is then that of one large batch. It costs a forward pass and 24 d^2 bytes per layer. Without it the operator is that
            of each microbatch.
        seed: of the directions and of the draw of layers; both also depend on the step, and on nothing else.
    """

    schedule: Literal["balanced"] = "balanced"
    weight: float = setting(1.0, "largest size of what is added, relative to the task's gradient")
    every: int = setting(1, _HELP["every"])
    layer_fraction: float = setting(1.0, _HELP["layer_fraction"])
    first_block_weight: float = setting(0.3, _HELP["first_block_weight"])
    rank: int | None = setting(None, _HELP["rank"])
    upper_threshold: float = setting(1.05, _HELP["upper_threshold"])
    ridge: float = setting(1e-2, "ridge of the whitening, relative to the mean variance")
    centred: bool = setting(False, _HELP["centred"])
    exact_accumulation: bool = setting(False, _HELP["exact_accumulation"])
    seed: int = setting(0, _HELP["seed"])

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class PaperKSSConfig(KSSConfig):
    """The published recipe: Eq. 14 is added to the loss every ``every`` steps (Eq. 15; names in brackets are the paper's).

    Attributes:
        weight: factor of the penalty (alpha). 0 switches KSS off.
        every, layer_fraction, rank, upper_threshold, exact_accumulation, seed: as in `BalancedKSSConfig`.
        first_block_weight: weight of the first block of each stack, relative to ``weight``.
        ridge: added to the covariance in whitening and regression.
        centred: take the means out.
        lower_threshold: lower end of the near-unit band (tau_l).
        near_unit_target: share of near-unit modes that is aimed at (gamma).
        near_unit_weight: weight of that aim (beta; the paper gives no number).
        temperature: steepness of the sigmoids (T).
    """

    schedule: Literal["paper"] = "paper"
    weight: float = setting(0.15, "factor of the penalty (alpha of Eq. 15)")
    every: int = setting(10, _HELP["every"])
    layer_fraction: float = setting(0.5, _HELP["layer_fraction"])
    first_block_weight: float = setting(1.0, _HELP["first_block_weight"])
    rank: int | None = setting(None, _HELP["rank"])
    upper_threshold: float = setting(1.05, _HELP["upper_threshold"])
    ridge: float = setting(1e-5, "ridge of the whitening, absolute")
    centred: bool = setting(True, _HELP["centred"])
    exact_accumulation: bool = setting(False, _HELP["exact_accumulation"])
    seed: int = setting(0, _HELP["seed"])
    lower_threshold: float = setting(0.90, "lower end of the near-unit band")
    near_unit_target: float = setting(0.4, "share of near-unit modes that is aimed at")
    near_unit_weight: float = setting(1.0, "weight of that aim")
    temperature: float = setting(20.0, "steepness of the sigmoids of Eq. 14")

    def __post_init__(self) -> None:
        self._check()
        for name in ("lower_threshold", "temperature"):
            require_positive(name, getattr(self, name))
        for name in ("near_unit_target", "near_unit_weight"):
            require_not_negative(name, getattr(self, name))
        if self.near_unit_target > 1:
            raise InputError(f"near_unit_target={self.near_unit_target}: it is a share, from 0 to 1")
        if self.lower_threshold >= self.upper_threshold:
            raise InputError(
                f"lower_threshold={self.lower_threshold}, upper_threshold={self.upper_threshold}: lower has to be below upper"
            )


#: Schedule -> its settings.
KSS_SCHEDULES: dict[str, type[KSSConfig]] = {"balanced": BalancedKSSConfig, "paper": PaperKSSConfig}
#: Rank if none is asked for, in states that are wide enough.
_KSS_RANK = 32
