"""Everything that is measured before the first step of a run: the spectral profile, one forward pass, one virtual step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hf_rksp.capture import find_stacks
from hf_rksp.capture.calling import forward, takes, untouched
from hf_rksp.capture.hvp import Method
from hf_rksp.profile.curvature import CurvatureMeasurement, measure_curvature
from hf_rksp.profile.directions import OptimizerLike
from hf_rksp.profile.gradients import Loss, model_loss
from hf_rksp.profile.model import ModelProfile, profile_model
from hf_rksp.profile.share import split
from hf_rksp.profile.signals import ForwardSignals, measure_signals
from hf_rksp.profile.step import StepMeasurement, measure_step
from hf_rksp.profile.together import can_share

#: Learning rate of the virtual step that gives the matrices A of a fresh LoRA a gradient.
_LORA_STEP = 1e-3


@dataclass(frozen=True)
class StartMeasurement:
    """Facts about a run that has not begun; no judgement.

    Attributes:
        profile: of the residual stream, without standard errors.
        signals: of one forward pass.
        step: what one step of the optimizer would do.
        curvature: the largest eigenvalue of the preconditioned Hessian, if it was asked for.
        seconds: wall-clock time of the whole measurement.
    """

    profile: ModelProfile
    signals: ForwardSignals
    step: StepMeasurement
    curvature: CurvatureMeasurement | None
    seconds: float


def measure_start(
    model: nn.Module,
    loss: Loss | None,
    batches: Sequence[Mapping[str, Any]],
    *,
    optimizer: OptimizerLike = "adam",
    pairs: int = 4,
    first_step: float | None = None,
    training: bool = False,
    curvature: bool = False,
    blocks: str | Sequence[str] | None = None,
    method: Method | Literal["auto"] = "auto",
    shared: bool = False,
    progress: bool = True,
) -> StartMeasurement:
    """Measure a model, its data and its optimizer before the first step. The model is left unchanged, to the bit.

    Args:
        model: see `hf_rksp.profile.measure_step`.
        loss: ``(model, batch) -> tensor`` with one number, or ``None`` for the loss of the model's own output.
        batches: mappings of the arguments of the model, labels among them. Eight are right: they serve four pairs of batches.
        optimizer, pairs, training, method: see `hf_rksp.profile.measure_step`.
        first_step: see `hf_rksp.profile.measure_step`. ``None`` is 1e-3 for a fresh LoRA, whose matrices A have no gradient while B
            is zero, and no step for any other model.
        curvature: also the largest eigenvalue of the preconditioned Hessian, by some 20 Hessian products.
        blocks: path(s) of the list(s) of residual blocks.
        shared: the processes of `torch.distributed`, each with the same model and the same batches, part the work, if
            `can_share` allows it. All get the same measurement.
        progress: show progress bars on stderr.

    Raises:
        What `hf_rksp.profile.profile_model` and `hf_rksp.profile.measure_step` raise.
    """
    started = time.perf_counter()
    if first_step is None and has_fresh_lora(model):
        first_step = _LORA_STEP
    shared = shared and can_share(model, lambda: (loss or model_loss)(model, batches[0]), len(batches))
    step = measure_step(
        model,
        loss,
        batches,
        optimizer=optimizer,
        pairs=pairs,
        first_step=first_step,
        training=training,
        blocks=blocks,
        method=method,
        shared=shared,
        progress=progress,
    )
    passed = [_unlabelled(model, batch) for batch in (split(batches) if shared else batches)]
    profile = profile_model(model, passed, blocks=blocks, groups=0, shared=shared, progress=progress)
    with untouched(model):
        signals = measure_signals(model, find_stacks(model, blocks), lambda: forward(model, batches[0]))
    found = None
    if curvature:
        found = measure_curvature(model, loss, batches, training=training, method=method)
    return StartMeasurement(profile, signals, step, found, time.perf_counter() - started)


def has_fresh_lora(model: nn.Module) -> bool:
    """Whether the model trains LoRA matrices of PEFT and all of their B are zero, as before the first step."""
    second = [weight for name, weight in model.named_parameters() if "lora_B" in name and weight.requires_grad]
    return bool(second) and not any(bool(weight.any()) for weight in second)


def has_lora(model: nn.Module) -> bool:
    """Whether the model trains LoRA matrices of PEFT, fresh or not."""
    return any("lora_B" in name and weight.requires_grad for name, weight in model.named_parameters())


def _unlabelled(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch without labels, which a profile needs only where the model makes the inputs of its decoder from them."""
    keep = "decoder_input_ids" not in batch and takes(model, "decoder_input_ids")
    return {name: value for name, value in batch.items() if keep or name != "labels"}
