"""When blocks of a network are unlocked: the plan of a depth warm-up, without any weights.

Source: arXiv:2606.16768, section on architecture warm-up: half of the depth until the learning rate has warmed up, then the rest in
four groups. Unlocking by learning rate and by measured curvature are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from hf_rksp.config import DepthWarmupConfig
from hf_rksp.errors import InputError

#: Steps between two unlockings at most, and the share of a run that they are if it is short.
_INTERVAL, _SHARE = 500, 0.05


def group_sizes(blocks: int, start: float, groups: int) -> list[int]:
    """How many blocks are active at first, then how many each unlocking adds; groups are as equal as can be.

    >>> group_sizes(12, 0.5, 4)
    [6, 2, 2, 1, 1]
    """
    first = max(ceil(blocks * start), 1)
    rest, number = blocks - first, min(groups, blocks - first)
    return [first, *(rest // number + (place < rest % number) for place in range(number))]


@dataclass
class DepthPlan:
    """Which step unlocks the next group.

    Args:
        config: see `DepthWarmupConfig`.
        groups: number of unlockings.
        last_step: steps of the run.
        warmup_steps: of the learning rate.
        decays: whether the learning rate falls after its warm-up, ``None`` if unknown.

    Attributes:
        done: unlockings so far.

    Raises:
        InputError: the run would end with locked blocks.
    """

    config: DepthWarmupConfig
    groups: int
    last_step: int
    warmup_steps: int
    decays: bool | None = None
    done: int = 0
    peak: float = 0.0
    below: int = 0

    def __post_init__(self) -> None:
        config = self.config
        self.begin = self.warmup_steps if config.begin is None else config.begin
        self.interval = config.interval or max(min(_INTERVAL, int(_SHARE * self.last_step)), 1)
        if config.schedule == "paper" and self.steps()[-1] >= self.last_step:
            begin = "warmup_steps" if config.begin is None else "depth_warmup_begin"
            raise InputError(
                f"{begin}={self.begin}, depth_warmup_interval={self.interval}, depth_warmup_groups={self.groups}: the last group "
                f"would be unlocked at step {self.steps()[-1]} of a run of {self.last_step}, which would end with locked blocks; "
                "make one of them smaller"
            )
        if config.schedule in ("lr", "curvature") and not self.begin < config.latest * self.last_step:
            raise InputError(
                f"depth_warmup_latest={config.latest}: that is step {config.latest * self.last_step:.0f}, and the first group is "
                f"unlocked at step {self.begin} at the earliest (depth_warmup_begin, or else warmup_steps); make it larger"
            )
        if config.schedule == "lr" and self.decays is False:
            raise InputError(
                "depth_warmup='lr': the learning rate does not fall, so no block would be unlocked; pass 'paper', or let it decay"
            )

    def steps(self) -> Sequence[int]:
        """The steps of the unlockings, with the schedule of the paper."""
        return [self.begin + place * self.interval for place in range(self.groups)]

    def listens(self, step: int) -> bool:
        """Whether readings of the curvature decide something when ``step`` begins; the same on every process."""
        return self.config.schedule == "curvature" and step >= self.begin and self.done < self.groups

    def due(self, step: int, rate: float | None, ratios: Sequence[float]) -> int:
        """How many groups are unlocked when ``step`` begins, all in all.

        Args:
            step: of the optimizer.
            rate: its learning rate, ``None`` if unknown.
            ratios: new readings of the curvature, as `ratio_momentum`.
        """
        if self.config.schedule == "paper":
            wanted = sum(step >= one for one in self.steps())
        elif self.config.schedule == "lr":
            wanted = self._by_rate(step, rate)
        else:
            wanted = self._by_curvature(step, ratios)
        self.done = max(self.done, min(wanted, self.groups))
        return self.done

    def _by_rate(self, step: int, rate: float | None) -> int:
        """At 4 groups: when the learning rate has fallen to 80%, 60%, 40% and 20% of its peak."""
        if rate is None:
            raise InputError("schedule='lr': the learning rate is unknown; pass optimizer= to TrainingRun")
        self.peak = max(self.peak, rate)
        if step < self.begin or not self.peak:
            return 0
        fallen = 1 - rate / self.peak
        return max(int(fallen * (self.groups + 1) + 1e-9), self._forced(step))

    def _by_curvature(self, step: int, ratios: Sequence[float]) -> int:
        if step < self.begin:
            return 0
        wanted = self.done
        for ratio in ratios:
            self.below = self.below + 1 if ratio < self.config.limit else 0
            if self.below >= self.config.dwell:
                wanted, self.below = wanted + 1, 0
        return max(wanted, self._forced(step))

    def _forced(self, step: int) -> int:
        """Groups that are unlocked whatever the learning rate or the curvature is: at equal intervals, the last one at `latest`."""
        end = int(self.config.latest * self.last_step)
        return max(int(self.groups * (step - self.begin) / max(end - self.begin, 1)), 0)
