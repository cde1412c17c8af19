"""Settings of architecture warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_rksp.config.checks import require_positive, require_whole, setting
from hf_rksp.errors import InputError


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
    start: float = setting(0.5, "share of the blocks that are active from the first step")
    groups: int = setting(4, "number of unlockings")
    begin: int | None = setting(None, "step of the first unlocking; the end of learning-rate warm-up by default")
    interval: int | None = setting(None, "steps between unlockings; min(500, 5%% of the run) by default")
    seed_scale: float = setting(0.05, "weights of an unlocked block, relative to their initialisation")
    ramp: int = setting(0, "steps in which the updates of an unlocked block grow to their full size")
    limit: float = setting(0.5, "'curvature': ratio_momentum below which a group of blocks is unlocked")
    dwell: int = setting(3, "'curvature': readings in a row below the limit")
    latest: float = setting(0.9, "'lr' and 'curvature': share of the run after which every block is active")

    def __post_init__(self) -> None:
        if self.schedule not in ("off", "paper", "lr", "curvature"):
            raise InputError(f"schedule={self.schedule!r}: pass 'off', 'paper', 'lr' or 'curvature'")
        for name in ("groups", "dwell"):
            require_whole(name, getattr(self, name), 1)
        require_whole("ramp", self.ramp, 0)
        for name, least in (("begin", 0), ("interval", 1)):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), least)
        for name in ("seed_scale", "limit"):
            require_positive(name, getattr(self, name))
        for name in ("start", "latest"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: pass a share between 0 and 1")
