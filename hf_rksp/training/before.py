"""Before the first step of a Trainer: the probability that the run is lost, on its own data, loss and optimizer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import InputError, RkspError, first_line
from hf_rksp.forecast import BATCHES, Forecast, forecast
from hf_rksp.ranks import from_main, world_size
from hf_rksp.risk.calibrated import SAFE
from hf_rksp.risk.plan import SCHEDULES, Objective, Plan

logger = logging.getLogger(__name__)

Mode = Literal["off", "warn", "stop"]
_OBJECTIVES: tuple[tuple[str, Objective], ...] = (
    ("SequenceClassification", "classification"), ("MaskedLM", "masked"), ("CausalLM", "causal"), ("LMHead", "causal"),
)  # fmt: skip
_OFF = "risk='off' leaves it out"


@dataclass(frozen=True)
class Said:
    """What is said of a run before its first step: plain values, for the history and for other processes.

    Attributes:
        p_lost: probability that the run is lost; ``None`` if it cannot be assessed.
        text: one sentence.
        values: for the event of the history.
    """

    p_lost: float | None
    text: str
    values: Mapping[str, Any]


def say(trainer: Trainer, blocks: str | Sequence[str] | None) -> Said:
    """Measure on the main process, before any engine wraps the model, and tell the others.

    What cannot be measured does not stop a run: the answer then says why.
    """
    said = _say(trainer, blocks) if trainer.is_world_process_zero() else None
    found: Said = from_main(said)
    return found


def act(said: Said, mode: Mode, limit: float) -> None:
    """Warn, or refuse to begin.

    Raises:
        InputError: ``mode`` is "stop" and the run is lost with a probability above ``limit``.
    """
    if said.p_lost is not None and said.p_lost > limit:
        if mode == "stop":
            raise InputError(f"learning_rate: {said.text} risk='stop' ends a run above {limit:g} (risk_limit)")
        logger.warning("%s", said.text)
    else:
        logger.info("%s", said.text)


def _say(trainer: Trainer, blocks: str | Sequence[str] | None) -> Said:
    lr = float(trainer.args.learning_rate)
    try:
        found = _forecast(trainer, blocks)
    except (RkspError, RuntimeError, TypeError, ValueError, KeyError) as error:
        text = f"P(lost) at learning rate {lr:g} cannot be assessed: {first_line(error)}."
        return Said(None, text, {"status": "not assessable", "lr": lr, "reasons": [first_line(error)]})
    return sentence(found, lr)


def sentence(found: Forecast, lr: float) -> Said:
    """The forecast as one sentence and plain values."""
    prediction = found.prediction
    p, interval, safe = prediction.p_lost(lr), prediction.interval(lr), prediction.rate_at()
    values = {
        "status": prediction.status,
        "lr": lr,
        "p_lost": p,
        "p_lost_interval": list(interval) if interval else None,
        "lr_max": safe,
        "reasons": list(prediction.reasons),
        "features": dict(found.numbers),
        "plan": found.plan.as_dict(),
        "seconds": round(found.start.seconds, 2) if found.start else 0.0,
    }
    if p is None or safe is None:
        return Said(None, f"P(lost) at learning rate {lr:g} cannot be assessed: {prediction.reasons[0]}.", values)
    more = " (extrapolated)" if prediction.status == "extrapolated" else ""
    text = f"P(lost) at learning rate {lr:g} is {p:.0%}{more}; it is below {SAFE:.0%} up to {safe:.2g}."
    return Said(p, text, values)


def _forecast(trainer: Trainer, blocks: str | Sequence[str] | None) -> Forecast:
    model: Any = trainer.model
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise InputError(
            "the weights are spread over the processes before training begins (zero.Init); use ZeRO-2, or rksp risk"
        )
    batches, max_steps = first_batches(trainer)
    plan = plan_of(trainer, max_steps, batches[0])
    own = trainer.optimizer if isinstance(trainer.optimizer, torch.optim.Optimizer) else None

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
        assert isinstance(value, Tensor)
        return value

    return forecast(
        model, batches, plan, loss=loss, optimizer=own, blocks=blocks, progress=not trainer.args.disable_tqdm
    )


def first_batches(trainer: Trainer) -> tuple[list[dict[str, Any]], int]:
    """The first batches of the run, and its number of steps.

    The random state is as before, and so is the order of the run's own batches.

    Raises:
        InputError: the data can be read only once, or makes no mapping.
    """
    dataset = trainer.train_dataset
    if hasattr(dataset, "__next__"):
        raise InputError(
            "train_dataset is an iterator that can be read only once; pass a dataset that can be read again"
        )
    kept = list(trainer.accelerator._dataloaders)
    try:
        model: Any = trainer.model
        with restored(model):
            loader = trainer.get_train_dataloader()
            max_steps = int(trainer.set_initial_training_values(trainer.args, loader)[-1])
            batches = list(itertools.islice(iter(loader), BATCHES))
    finally:
        trainer.accelerator._dataloaders[:] = kept
    if len(batches) < 2:
        raise InputError(f"the data makes {len(batches)} batches, and two are needed")
    if not all(isinstance(batch, Mapping) for batch in batches):
        raise InputError(f"a batch is a {type(batches[0]).__name__}, and mappings are needed")
    return [dict(batch) for batch in batches], max_steps


def plan_of(trainer: Trainer, max_steps: int, batch: Mapping[str, Any]) -> Plan:
    """The plan that the arguments of a Trainer make."""
    args = trainer.args
    model: Any = trainer.model
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    objective = next((objective for part, objective in _OBJECTIVES if part in name), None)
    if objective is None:
        raise InputError(f"the objective of {name} is none of causal, masked or classification")
    optimizer = (
        type(trainer.optimizer).__name__.lower()
        if trainer.optimizer is not None
        else str(getattr(args.optim, "value", args.optim))
    )
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return Plan(
        optimizer=optimizer,
        beta2=args.adam_beta2,
        weight_decay=args.weight_decay,
        warmup=min(int(args.get_warmup_steps(max_steps)), max_steps),
        schedule=schedule if schedule in SCHEDULES else "linear",
        steps=max_steps,
        clip=args.max_grad_norm or None,
        tokens=_tokens(batch) * world_size() * args.gradient_accumulation_steps,
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        objective=objective,
        start="pretrained" if getattr(model, "name_or_path", "") else "initialised",
    )


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return max(int(mask.sum()), 1)
    return max((value.numel() for value in batch.values() if isinstance(value, Tensor)), default=1)
