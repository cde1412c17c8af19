"""The guard of a run: it judges every step, and says at once if one fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.hvp import trainable
from hf_rksp.config.guard import GuardConfig
from hf_rksp.errors import InputError
from hf_rksp.training.guard.judge import Finding, Judge
from hf_rksp.training.guard.numbers import gradient_numbers
from hf_rksp.training.host import to_host
from hf_rksp.training.monitors.base import Alarm, Intervention, Measuring, Reading, none
from hf_rksp.training.watch import Watch

#: Weights that are named if their gradients are not finite.
_NAMED = 3


class DivergenceGuard(Intervention):
    """Judges loss and gradient norm of every step, before anything filters or clips them, and raises an alarm if a step fails.

    The numbers of a step are read one step later, when they are there: no step waits for the device. The loss is the one that the
    model returns, as the mean over the batches of a step and over the processes. In a loop of your own call
    ``TrainingRun.gradients_ready`` before clipping. With `RKSPCallback` alone the norm is that after clipping, and under DeepSpeed
    there is none.

    Args:
        config: see `GuardConfig`; of its rungs "warn" alone can be chosen so far.

    Attributes:
        failing: steps that have failed so far.
    """

    name = "guard"

    def __init__(self, config: GuardConfig | None = None) -> None:
        self.config = config or GuardConfig()
        if self.config.chosen != ("warn",):
            raise InputError(f"rungs={self.config.rungs!r}: 'warn' alone can be chosen so far")
        self.judge = Judge(self.config)
        self.failing = 0
        self._said: dict[str, int] = {}

    def attach(self, watch: Watch) -> None:
        """Look at what the model returns; what an earlier run has left is forgotten."""
        super().attach(watch)
        self.judge.reset()
        self.failing = 0
        self._said = {}
        self._losses: list[Tensor] = []
        self._names: list[str] = []
        self._gradients: Tensor | None = None
        self._waiting: tuple[int, Tensor, list[str]] | None = None
        self._hook = watch.model.register_forward_hook(self._saw)

    def _saw(self, module: nn.Module, args: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if module.training and torch.is_grad_enabled() and isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach().reshape(()).double())

    def due(self, step: int, last_step: int) -> bool:
        """Every step."""
        return True

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """A step begins."""
        self._losses, self._gradients = [], None
        return none()

    def gradients_ready(self, step: int, readings: Sequence[Reading]) -> None:
        """Take the norm of the gradient."""
        weights = trainable(self.watch.model)
        self._names, self._gradients = list(weights), gradient_numbers(weights)

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """Keep the numbers of the step, and judge those of the step before."""
        before, self._waiting = self._waiting, self._numbers(step)
        return self._judged(before, main_process)

    def run_end(self, step: int, main_process: bool) -> Measuring:
        """Judge the last step."""
        before, self._waiting = self._waiting, None
        return self._judged(before, main_process)

    def _numbers(self, step: int) -> tuple[int, Tensor, list[str]] | None:
        """Sum of the losses, their number, then those of `gradient_numbers` if there are gradients."""
        names = self._names if self._gradients is not None else []
        losses = torch.stack(self._losses) if self._losses else None
        like = self._gradients if self._gradients is not None else losses
        if like is None:
            return None
        zero = like.new_zeros(2)
        first = zero if losses is None else torch.stack([losses.sum(), zero[0] + len(losses)])
        return step, torch.cat([first.to(like), like if self._gradients is not None else like[:0]]), names

    def _judged(self, numbers: tuple[int, Tensor, list[str]] | None, main_process: bool) -> Measuring:
        if numbers is None:
            return None
        step, mine, names = numbers
        (summed,) = yield [mine]
        total, count, *gradient = to_host(summed)[0].tolist()
        loss = total / count if count else None
        norm = (math.sqrt(gradient[0]) if gradient[0] >= 0 else math.nan) if gradient else None
        findings = self.judge.judge(loss, norm)
        self.failing += bool(findings)
        broken = [name for name, flag in zip(names, gradient[1:], strict=True) if flag]
        alarms = [self._alarm(step, finding, broken) for finding in findings if self._is_new(step, finding)]
        return Reading(self.name, step, {}, alarms=alarms) if main_process and alarms else None

    def _is_new(self, step: int, finding: Finding) -> bool:
        """Whether the rule has not been said within the cool-down: a run that has failed fails in every step."""
        last, self._said[finding.rule] = self._said.get(finding.rule), step
        return last is None or step - last > self.config.cooldown

    def _alarm(self, step: int, finding: Finding, broken: list[str]) -> Alarm:
        if not (broken and finding.rule.startswith("gradient norm")):
            return Alarm(finding.rule, finding.text)
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        return Alarm(finding.rule, f"{finding.text} Not finite: {', '.join(broken[:_NAMED])}{more}.", broken[0])

    def pop_logs(self) -> dict[str, float]:
        """Number of failing steps so far, once there is one."""
        return {"guard/failing": float(self.failing)} if self.failing else {}

    def state_dict(self) -> dict[str, Any]:
        """The past of the run, and what was said. The numbers of the last step are not in it."""
        return {"judge": self.judge.state_dict(), "failing": self.failing, "said": dict(self._said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of another window.
        """
        self.judge.load_state_dict(state["judge"])
        self.failing = int(state["failing"])
        self._said = {str(rule): int(step) for rule, step in state["said"].items()}

    def close(self) -> None:
        """Look no more."""
        self._hook.remove()
