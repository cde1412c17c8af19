"""The optimizer's step of a run: it can be left out once, or be made with smaller learning rates.

A step that is left out is not called at all: no weight, moment, step count or learning-rate schedule moves. Multiplying gradients
by zero would not do, because zero times NaN is NaN.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.errors import InputError

#: Optimizers that move the weights within the backward pass: their step does nothing, and nothing can be left out.
_IN_BACKWARD = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")


class StepGate:
    """Stands before the ``step`` of an optimizer while it is open.

    Under DeepSpeed the engine makes the step inside accelerate's ``backward``, where no trainer comes in between. There the gate
    says itself that the gradients are there (`says_ready`).

    Args:
        optimizer: of torch, of accelerate, or of DeepSpeed.
        ready: called when the gradients are there and the weights have not moved, if the gate says so itself.
        scaler: `torch.amp.GradScaler` of a loop that scales its loss itself.

    Attributes:
        factor: on all learning rates, from the next step on.
        left_out: whether the last step was left out.

    Raises:
        InputError: the optimizer has no ``step``.
    """

    def __init__(self, optimizer: object, ready: Callable[[], None], scaler: Any = None) -> None:
        self._accelerated, self._target, self.says_ready = _target(optimizer)
        if not callable(getattr(self._target, "step", None)):
            raise InputError(f"optimizer={type(optimizer).__name__}: it has no step()")
        self._scaler = getattr(self._accelerated, "scaler", None) if scaler is None else scaler
        self.factor = 1.0
        self._ready, self._leave_out = ready, False
        self.left_out = self._called = False
        self._had = "step" in vars(self._target)
        self._step: Callable[..., Any] = self._target.step
        self._own = _method(self._gated, self._step, self._target)
        self._target.step = self._own

    @property
    def can_leave_out(self) -> bool:
        """Whether the weights move in ``step`` and nowhere else."""
        names = {type(self._target).__name__, type(getattr(self._target, "optimizer", None)).__name__}
        return not names & set(_IN_BACKWARD)

    @property
    def deepspeed(self) -> Any:
        """DeepSpeed's own optimizer, which has the gradients; ``None`` elsewhere."""
        return self._target if self.says_ready else None

    @property
    def loss_scale(self) -> float | None:
        """What the loss of a float16 run is multiplied by, and the gradients with it; ``None`` without loss scaling.

        Its scaler skips steps whose gradients are not finite, and tries a smaller scale: that is no fault of the run.
        """
        if self.says_ready:
            scaled = getattr(self._target, "dtype", None) == torch.float16
            return float(self._target.loss_scale) if scaled else None
        return float(self._scaler.get_scale()) if self._scaler is not None and self._scaler.is_enabled() else None

    @property
    def gradient_scale(self) -> float | None:
        """What the gradients are multiplied by now; ``None`` if they are not, or not any more: clipping unscales them."""
        if self.says_ready or self._scaler is None or not self._scaler.is_enabled():
            return None
        of = self._target if self._accelerated is None else self._accelerated.optimizer
        stage = getattr(self._scaler, "_per_optimizer_states", {}).get(id(of), {}).get("stage")
        return None if getattr(stage, "name", "") == "UNSCALED" else float(self._scaler.get_scale())

    @property
    def skipped_itself(self) -> bool:
        """Whether the last step was skipped by the loss scaling of float16, and not by this gate.

        A loop that scales its loss itself is not asked.
        """
        of = self._target if self.says_ready else self._accelerated
        flag = "overflow" if self.says_ready else "_is_overflow"
        return bool(getattr(of, flag, False)) and not self.left_out

    def leave_out(self) -> None:
        """Leave out the step that comes."""
        self._leave_out = True

    def step_over(self) -> None:
        """The step is over. A scaler does not call ``step`` after an overflow: then the next one must not be left out."""
        if not self._called:
            self.left_out = self._leave_out
        self._called = self._leave_out = False

    def close(self) -> None:
        """Stand there no more."""
        self.factor, self._leave_out, self.says_ready = 1.0, False, False
        if self._accelerated is not None:
            self._accelerated._is_overflow = False  # only a scaler resets it
        if self._target.step != self._own:
            return  # a scheduler that was made later stands before the gate, which lets everything pass from now on
        if self._had:
            self._target.step = self._step
        else:
            del self._target.step

    def _gated(self, *args: Any, **kwargs: Any) -> Any:
        if self._accelerated is not None and not self._accelerated.gradient_state.sync_gradients:
            return self._step(*args, **kwargs)  # accelerate makes no step before the last batch
        if self.says_ready:
            self._ready()
        self.left_out, self._leave_out, self._called = self._leave_out, False, True
        if self.left_out:
            return self._without()
        if self._accelerated is not None:
            self._accelerated._is_overflow = False
        elif hasattr(self._target, "overflow"):
            self._target.overflow = False
        with self._smaller():
            return self._step(*args, **kwargs)

    @contextlib.contextmanager
    def _smaller(self) -> Iterator[None]:
        if self.factor == 1.0:
            yield
            return
        before = rates_of(self._target)
        for group in self._target.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].mul_(self.factor)  # in place: a captured graph reads it
            else:
                group["lr"] *= self.factor
        try:
            yield
        finally:
            put_rates(self._target, before)

    def _without(self) -> None:
        """Say to everyone who counts steps that there was none."""
        if self.says_ready:
            _forget_gradients(self._target)
        elif self._accelerated is not None:
            if self._accelerated.scaler is not None:
                self._scaler_goes_on()
            self._accelerated._is_overflow = True  # Trainer then leaves the schedule as it is

    def _scaler_goes_on(self) -> None:
        """A scaler that has unscaled gradients wants to see a step before it unscales the next ones."""
        patched = self._accelerated._optimizer_patched_step_method
        self._accelerated._optimizer_patched_step_method = lambda *args, **kwargs: None
        try:
            self._step()
        finally:
            self._accelerated._optimizer_patched_step_method = patched


def rates_of(optimizer: Any) -> list[Any]:
    """A copy of the learning rate of each group."""
    return [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in optimizer.param_groups]


def put_rates(optimizer: Any, rates: Sequence[Any]) -> None:
    """Give each group its learning rate of `rates_of` again."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor) and isinstance(group["lr"], Tensor):
            group["lr"].copy_(rate)  # in place: a captured graph reads it
        else:
            group["lr"] = rate


def _method(gated: Callable[..., Any], step: Callable[..., Any], target: object) -> Callable[..., Any]:
    """``gated`` as a method of ``target``: schedulers of torch unpack the method, and know their own by a mark on it."""

    def method(self: object, *args: Any, **kwargs: Any) -> Any:
        return gated(*args, **kwargs)

    method.__dict__.update(getattr(step, "__dict__", {}))
    return types.MethodType(method, target)


def _target(optimizer: object) -> tuple[Any, Any, bool]:
    """Accelerate's optimizer if it makes the step; what ``step`` is called on; whether that is in DeepSpeed's hands."""
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if "DeepSpeedOptimizerWrapper" in names:
        return None, getattr(optimizer, "optimizer", None), True
    if "AcceleratedOptimizer" in names:
        return optimizer, optimizer, False
    of_deepspeed = type(optimizer).__module__.startswith("deepspeed.runtime")
    return None, optimizer, of_deepspeed


def _forget_gradients(optimizer: Any) -> None:
    """What DeepSpeed's optimizers do themselves after an overflow: the gradients that they have kept are gone."""
    optimizer.overflow = True  # the engine reads it, counts the step as skipped, and leaves its schedule as it is
    if hasattr(optimizer, "_overflow_clean_up"):  # ZeRO-3
        if hasattr(optimizer, "_pre_step"):
            optimizer._pre_step()
        optimizer._partition_all_parameters()
        optimizer._overflow_clean_up(optimizer.loss_scale)
    elif hasattr(optimizer, "averaged_gradients"):  # ZeRO 1 and 2
        optimizer.micro_step_id = -1
        optimizer.zero_grad(set_to_none=True)
        release = getattr(optimizer, "_release_preflattened_grad_buffers", None)
        if release is not None:
            release()
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
        else:
            for kept in (optimizer.averaged_gradients, getattr(optimizer, "all_grad_tensors", {})):
                for key in kept:
                    kept[key] = None
    elif hasattr(optimizer, "clear_hp_grads"):  # bfloat16 with gradients in float32
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()
    else:
        optimizer.zero_grad()


def deepspeed_norm(optimizer: Any) -> Tensor | None:
    """The norm of the whole gradient that DeepSpeed has kept, before clipping: the same number on every process.

    NaN if the gradient is not finite; ``None`` if this optimizer of DeepSpeed does not tell before its step. Every process has to
    call it.
    """
    scale = float(getattr(optimizer, "loss_scale", 1.0) or 1.0)
    if hasattr(optimizer, "scaled_global_norm"):
        parts = [optimizer.scaled_global_norm()]
    elif hasattr(optimizer, "_get_norm_groups"):
        parts = list(optimizer._get_norm_groups())
    elif hasattr(optimizer, "get_grads_for_norm"):
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        parts = [get_global_norm_of_tensors(input_tensors=optimizer.get_grads_for_norm()[0], mpu=optimizer.mpu)]
    else:
        return None
    norms = torch.stack([torch.as_tensor(part, dtype=torch.float64).reshape(()).cpu() for part in parts])
    known = norms.isfinite() & (norms >= 0)  # DeepSpeed says -1 for a norm that is not finite
    return torch.where(known, norms, torch.nan).square().sum().sqrt() / scale


def deepspeed_broken(weights: Mapping[str, nn.Parameter]) -> list[str]:
    """The weights whose gradients, as DeepSpeed keeps them, are not finite. Every process has to call it."""
    from deepspeed.utils import safe_get_full_grad

    found = []
    for name, weight in weights.items():
        gradient = safe_get_full_grad(weight)
        if gradient is not None and not bool(gradient.isfinite().all()):
            found.append(name)
    return found
