"""Settings of the monitors of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_rksp.config.checks import require_flag, require_positive, require_whole, setting
from hf_rksp.errors import InputError


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

    every: int = setting(500, "optimizer steps from one profile to the next; 0 for the start and the end alone")
    at_start: bool = setting(True, "profile the first step")
    at_end: bool = setting(True, "profile the last step")
    data: Literal["batch", "probe"] = setting(
        "batch",
        "'batch': profile the training batch itself; no extra forward pass. 'probe': profile the fixed batches given as probe=",
    )
    rank: int = setting(64, "directions that the profiled states are projected on")
    per_layer: bool = setting(False, "log the near-unit mass and the spectral radius of every layer")

    def __post_init__(self) -> None:
        require_whole("every", self.every, 0, "pass a number of steps, or 0 for the start and the end alone")
        require_whole("rank", self.rank, 1)
        for name in ("at_start", "at_end", "per_layer"):
            require_flag(name, getattr(self, name))
        if self.data not in ("batch", "probe"):
            raise InputError(f"data={self.data!r}: pass 'batch' or 'probe'")

    def due(self, step: int, last_step: int) -> bool:
        """Whether ``step`` is profiled, in a run whose last step is ``last_step``."""
        regular = self.every > 0 and step > 0 and step % self.every == 0
        return regular or (self.at_start and step == 0) or (self.at_end and step == last_step)


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

    every: int = setting(0, "optimizer steps from one reading of Spectral Alignment to the next; 0 switches it off")
    products: int = setting(1, "steps of power iteration per reading")
    limit: float = setting(8.0, _ALARM["limit"])
    dwell: int = setting(3, _ALARM["dwell"])
    window: int = setting(64, _ALARM["window"])

    def __post_init__(self) -> None:
        _require_alarms(self)
        require_whole("products", self.products, 1)


@dataclass(frozen=True)
class AttentionConfig:
    """When queries, keys and attention logits are read, and what counts as an alarm.

    Attributes:
        every: optimizer steps from one reading to the next; 0 switches the monitor off.
        limit, dwell, window: see `AlignmentConfig`.
    """

    every: int = setting(
        0, "optimizer steps from one reading of queries, keys and logits to the next; 0 switches it off"
    )
    limit: float = setting(8.0, _ALARM["limit"])
    dwell: int = setting(3, _ALARM["dwell"])
    window: int = setting(64, _ALARM["window"])

    def __post_init__(self) -> None:
        _require_alarms(self)


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
        data: "batch" takes the batch of the step; "first" keeps the first batch that is read and takes it again in every
            reading.
        method: "lanczos", or "power" for power iteration as published.
        limit: ``ratio_momentum`` above which a reading is flagged; ``None`` for no alarms. On tuning runs no limit told failing
            runs from healthy ones (`scripts/reproduce/curvature_claims`).
        dwell: flagged readings in a row from which an alarm begins; as many others end it.
    """

    every: int = setting(0, "optimizer steps from one reading of the curvature to the next; 0 switches it off")
    products: int = setting(16, "Hessian products per reading at most, for the largest eigenvalue")
    sequences: int | None = setting(None, "sequences of a batch that the Hessian is of; all of them by default")
    data: Literal["batch", "first"] = setting(
        "batch", "'batch': the batch of the step. 'first': the first batch, in every reading"
    )
    method: Literal["lanczos", "power"] = setting(
        "lanczos", "'lanczos', or 'power' for power iteration as published (arXiv:2606.16768)"
    )
    limit: float | None = setting(None, "a reading with a ratio_momentum above it is flagged; no alarms by default")
    dwell: int = setting(3, _ALARM["dwell"])

    def __post_init__(self) -> None:
        require_whole("every", self.every, 0, "pass a number of steps, or 0 to switch the monitor off")
        for name in ("products", "dwell"):
            require_whole(name, getattr(self, name), 1)
        if self.sequences is not None:
            require_whole("sequences", self.sequences, 1)
        for name, words in (("data", ("batch", "first")), ("method", ("lanczos", "power"))):
            if getattr(self, name) not in words:
                raise InputError(f"{name}={getattr(self, name)!r}: pass {' or '.join(map(repr, words))}")
        if self.limit is not None:
            require_positive("limit", self.limit)


def _require_alarms(config: AlignmentConfig | AttentionConfig) -> None:
    """The settings of every monitor that compares a run with its own past."""
    require_whole("every", config.every, 0, "pass a number of steps, or 0 to switch the monitor off")
    for name, least in (("dwell", 1), ("window", 16)):
        require_whole(name, getattr(config, name), least)
    require_positive("limit", config.limit)
