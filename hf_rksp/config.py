"""Settings, checked where they are made. Imports nothing of the package but the errors."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from hf_rksp.errors import InputError


def _positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number above zero")


def _whole(name: str, value: int, least: int, remedy: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: {remedy or f'pass a whole number of at least {least}'}")


def _flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: pass True or False")


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
                _positive(name, getattr(self, name))
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
            _positive(name, getattr(self, name))
        if not self.safe_near_unit_mass < self.high_near_unit_mass <= 1:
            raise InputError(
                f"safe_near_unit_mass={self.safe_near_unit_mass}, high_near_unit_mass={self.high_near_unit_mass}: "
                "it has to be safe < high <= 1"
            )
        if self.assessable_share > 1:
            raise InputError(f"assessable_share={self.assessable_share}: it is a share, at most 1")


def _setting(default: Any, text: str) -> Any:
    """A field with the help that the command line shows for it."""
    return field(default=default, metadata={"help": text})


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
            _flag(name, getattr(self, name))
        if self.rank is not None:
            _whole("rank", self.rank, 1)
        for name, least in (("every", 1), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("upper_threshold", "ridge"):
            _positive(name, getattr(self, name))
        for name in ("weight", "first_block_weight", "layer_fraction"):
            _not_negative(name, getattr(self, name))
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
    "of 8; a step takes about 50%% longer, and 24 d^2 bytes per layer",
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
    weight: float = _setting(1.0, "largest size of what is added, relative to the task's gradient")
    every: int = _setting(1, _HELP["every"])
    layer_fraction: float = _setting(1.0, _HELP["layer_fraction"])
    first_block_weight: float = _setting(0.3, _HELP["first_block_weight"])
    rank: int | None = _setting(None, _HELP["rank"])
    upper_threshold: float = _setting(1.05, _HELP["upper_threshold"])
    ridge: float = _setting(1e-2, "ridge of the whitening, relative to the mean variance")
    centred: bool = _setting(False, _HELP["centred"])
    exact_accumulation: bool = _setting(False, _HELP["exact_accumulation"])
    seed: int = _setting(0, _HELP["seed"])

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
    weight: float = _setting(0.15, "factor of the penalty (alpha of Eq. 15)")
    every: int = _setting(10, _HELP["every"])
    layer_fraction: float = _setting(0.5, _HELP["layer_fraction"])
    first_block_weight: float = _setting(1.0, _HELP["first_block_weight"])
    rank: int | None = _setting(None, _HELP["rank"])
    upper_threshold: float = _setting(1.05, _HELP["upper_threshold"])
    ridge: float = _setting(1e-5, "ridge of the whitening, absolute")
    centred: bool = _setting(True, _HELP["centred"])
    exact_accumulation: bool = _setting(False, _HELP["exact_accumulation"])
    seed: int = _setting(0, _HELP["seed"])
    lower_threshold: float = _setting(0.90, "lower end of the near-unit band")
    near_unit_target: float = _setting(0.4, "share of near-unit modes that is aimed at")
    near_unit_weight: float = _setting(1.0, "weight of that aim")
    temperature: float = _setting(20.0, "steepness of the sigmoids of Eq. 14")

    def __post_init__(self) -> None:
        self._check()
        for name in ("lower_threshold", "temperature"):
            _positive(name, getattr(self, name))
        for name in ("near_unit_target", "near_unit_weight"):
            _not_negative(name, getattr(self, name))
        if self.near_unit_target > 1:
            raise InputError(f"near_unit_target={self.near_unit_target}: it is a share, from 0 to 1")
        if self.lower_threshold >= self.upper_threshold:
            raise InputError(
                f"lower_threshold={self.lower_threshold}, upper_threshold={self.upper_threshold}: lower has to be below upper"
            )


#: Help of the settings that monitors with alarms share.
_ALARM = {
    "limit": "deviation from the run's own past, in units of its scatter, that flags a layer",
    "dwell": "flagged readings in a row from which an alarm begins",
    "window": "healthy readings that make up the past of the run",
}


@dataclass(frozen=True)
class AlignmentConfig:
    """When Spectral Alignment is read, and what counts as an alarm.

    Attributes:
        every: optimizer steps from one reading to the next; 0 switches the monitor off.
        products: steps of power iteration per reading; each is a product with every watched weight and one with its transpose.
        limit: deviation from the run's own past, in units of its scatter, above which a layer is flagged.
        dwell: flagged readings in a row from which an alarm begins.
        window: healthy readings that make up that past.
    """

    every: int = _setting(0, "optimizer steps from one reading of Spectral Alignment to the next; 0 switches it off")
    products: int = _setting(1, "steps of power iteration per reading")
    limit: float = _setting(8.0, _ALARM["limit"])
    dwell: int = _setting(3, _ALARM["dwell"])
    window: int = _setting(64, _ALARM["window"])

    def __post_init__(self) -> None:
        _check_alarms(self)
        _whole("products", self.products, 1)


@dataclass(frozen=True)
class AttentionConfig:
    """When queries, keys and attention logits are read, and what counts as an alarm.

    Attributes:
        every: optimizer steps from one reading to the next; 0 switches the monitor off.
        limit, dwell, window: see `AlignmentConfig`.
    """

    every: int = _setting(
        0, "optimizer steps from one reading of queries, keys and logits to the next; 0 switches it off"
    )
    limit: float = _setting(8.0, _ALARM["limit"])
    dwell: int = _setting(3, _ALARM["dwell"])
    window: int = _setting(64, _ALARM["window"])

    def __post_init__(self) -> None:
        _check_alarms(self)


@dataclass(frozen=True)
class CurvatureConfig:
    """When preconditioned curvature is read, from what, and what counts as an alarm.

    Attributes:
        every: optimizer steps from one reading to the next; 0 switches the monitor off.
        products: Hessian products per reading at most. A search has at least four and ends if the residual of the largest
            eigenvalue is 5% of it; the first reading may take four times as many. One more product is
            taken along the update.
        sequences: of a batch that the Hessian is of; ``None`` for all of them. A part of a batch costs less and has a larger
            eigenvalue than the whole.
        data: "batch" takes the batch of the step; "first" keeps the first batch that is read and takes it again in every reading.
        method: "lanczos", or "power" for power iteration as published.
        limit: learning rate times curvature along the update over 2, above which a reading is flagged.
        dwell: flagged readings in a row from which an alarm begins; as many others end it.
    """

    every: int = _setting(0, "optimizer steps from one reading of the curvature to the next; 0 switches it off")
    products: int = _setting(16, "Hessian products per reading at most, for the largest eigenvalue")
    sequences: int | None = _setting(None, "sequences of a batch that the Hessian is of; all of them by default")
    data: Literal["batch", "first"] = _setting(
        "batch", "'batch': the batch of the step. 'first': the first batch, in every reading"
    )
    method: Literal["lanczos", "power"] = _setting(
        "lanczos", "'lanczos', or 'power' for power iteration as published (arXiv:2606.16768)"
    )
    limit: float = _setting(1.0, "a reading with a ratio_direction above it is flagged")
    dwell: int = _setting(3, _ALARM["dwell"])

    def __post_init__(self) -> None:
        _whole("every", self.every, 0, "pass a number of steps, or 0 to switch the monitor off")
        for name in ("products", "dwell"):
            _whole(name, getattr(self, name), 1)
        if self.sequences is not None:
            _whole("sequences", self.sequences, 1)
        for name, words in (("data", ("batch", "first")), ("method", ("lanczos", "power"))):
            if getattr(self, name) not in words:
                raise InputError(f"{name}={getattr(self, name)!r}: pass {' or '.join(map(repr, words))}")
        _positive("limit", self.limit)


@dataclass(frozen=True)
class DepthWarmupConfig:
    """How a network is kept shallow while the learning rate rises (arXiv:2606.16768).

    Attributes:
        schedule: "off". "paper": the first groups of blocks are unlocked at ``begin``, and one more every ``interval`` steps.
            "lr": as the learning rate decays from its peak. "curvature": when the curvature is low; needs ``curvature_every``.
        start: share of the blocks of each stack that are active from the first step; the deepest ones are locked.
        groups: in how many steps the others are unlocked.
        begin: step of the first unlocking; ``None`` for the end of the warm-up of the learning rate.
        interval: steps from one unlocking to the next; ``None`` for 500, or 5% of the run if that is less.
        seed_scale: standard deviation of the weights of a block that is unlocked, relative to that at initialisation.
        ramp: steps in which the updates of a block grow to their full size; 0 for none.
        limit: with "curvature": learning rate times curvature over its limit with momentum, below which a group is unlocked.
        dwell: with "curvature": readings in a row below the limit.
        latest: with "lr" and "curvature": share of the run after which every block is active, whatever those are.
    """

    schedule: Literal["off", "paper", "lr", "curvature"] = "off"
    start: float = _setting(0.5, "share of the blocks that are active from the first step")
    groups: int = _setting(4, "number of unlockings")
    begin: int | None = _setting(None, "step of the first unlocking; the end of learning-rate warm-up by default")
    interval: int | None = _setting(None, "steps between unlockings; min(500, 5%% of the run) by default")
    seed_scale: float = _setting(0.05, "weights of an unlocked block, relative to their initialisation")
    ramp: int = _setting(0, "steps in which the updates of an unlocked block grow to their full size")
    limit: float = _setting(0.5, "'curvature': ratio_momentum below which a group of blocks is unlocked")
    dwell: int = _setting(3, "'curvature': readings in a row below the limit")
    latest: float = _setting(0.9, "'lr' and 'curvature': share of the run after which every block is active")

    def __post_init__(self) -> None:
        if self.schedule not in ("off", "paper", "lr", "curvature"):
            raise InputError(f"schedule={self.schedule!r}: pass 'off', 'paper', 'lr' or 'curvature'")
        for name in ("groups", "dwell"):
            _whole(name, getattr(self, name), 1)
        _whole("ramp", self.ramp, 0)
        for name, least in (("begin", 0), ("interval", 1)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least)
        for name in ("seed_scale", "limit"):
            _positive(name, getattr(self, name))
        for name in ("start", "latest"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: pass a share between 0 and 1")


def _check_alarms(config: AlignmentConfig | AttentionConfig) -> None:
    """The settings of every monitor that compares a run with its own past."""
    _whole("every", config.every, 0, "pass a number of steps, or 0 to switch the monitor off")
    for name, least in (("dwell", 1), ("window", 16)):
        _whole(name, getattr(config, name), least)
    _positive("limit", config.limit)


#: Schedule -> its settings.
KSS_SCHEDULES: dict[str, type[KSSConfig]] = {"balanced": BalancedKSSConfig, "paper": PaperKSSConfig}
#: Rank if none is asked for, in states that are wide enough.
_KSS_RANK = 32


@dataclass(frozen=True)
class MonitorConfig:
    """When the spectral monitor profiles a training run, and on what.

    Attributes:
        every: optimizer steps from one profile to the next; 0 for none but at the start and at the end.
        at_start, at_end: profile the first and the last step whatever ``every`` says.
        data: "batch" takes the states of the training batch itself, without a forward pass of its own (dropout is on);
            "probe" runs a fixed set of batches in evaluation mode.
        rank: directions that the states are projected on; fewer if the batch has fewer than two tokens for each.
        per_layer: also log the near-unit mass and spectral radius of every layer.
    """

    every: int = _setting(500, "optimizer steps from one profile to the next; 0 for the start and the end alone")
    at_start: bool = _setting(True, "profile the first step")
    at_end: bool = _setting(True, "profile the last step")
    data: Literal["batch", "probe"] = _setting(
        "batch",
        "'batch': profile the training batch itself; no extra forward pass. 'probe': profile the fixed batches given as probe=",
    )
    rank: int = _setting(64, "directions that the profiled states are projected on")
    per_layer: bool = _setting(False, "log the near-unit mass and the spectral radius of every layer")

    def __post_init__(self) -> None:
        _whole("every", self.every, 0, "pass a number of steps, or 0 for the start and the end alone")
        _whole("rank", self.rank, 1)
        for name in ("at_start", "at_end", "per_layer"):
            _flag(name, getattr(self, name))
        if self.data not in ("batch", "probe"):
            raise InputError(f"data={self.data!r}: pass 'batch' or 'probe'")

    def due(self, step: int, last_step: int) -> bool:
        """Whether ``step`` is profiled, in a run whose last step is ``last_step``."""
        regular = self.every > 0 and step > 0 and step % self.every == 0
        return regular or (self.at_start and step == 0) or (self.at_end and step == last_step)
