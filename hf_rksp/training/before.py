"""Before the first step of a Trainer: the probability that the run is lost, on its own data, loss and optimizer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import Trainer

from hf_rksp.capture import find_stacks
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.drawn import weights_are_trained
from hf_rksp.capture.norms import find_norms
from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import InputError, NonFiniteError, first_line
from hf_rksp.profile.directions import unwrapped
from hf_rksp.ranks import from_main, world_size
from hf_rksp.risk.calibrated import NO_ANSWER, NO_RATE, SAFE, decisive, percent
from hf_rksp.risk.plan import SCHEDULES, Objective, Plan
from hf_rksp.training.extra_pass import loss_beside
from hf_rksp.training.first_batches import as_before, first_batches

if TYPE_CHECKING:
    from hf_rksp.forecast import Forecast

logger = logging.getLogger(__name__)

Mode = Literal["off", "warn", "stop"]
MODES = ("off", "warn", "stop")
#: Probability above which a run is warned of or stopped, unless another one is set.
LIMIT = 0.2
_OBJECTIVES: tuple[tuple[str, Objective], ...] = (
    ("SequenceClassification", "classification"), ("MaskedLM", "masked"), ("CausalLM", "causal"), ("LMHead", "causal"),
)  # fmt: skip
#: A run with a loss or a gradient norm above these is lost by definition.
_MOST_LOSS, _MOST_NORM = 50.0, 500.0


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

    @property
    def decides(self) -> bool:
        """Whether the probability is known well enough to act on it: an interval from 0 to 1 decides nothing."""
        interval = self.values.get("p_lost_interval")
        certain = self.values.get("status") == "lost"
        return self.p_lost is not None and (
            certain or not interval or decisive(interval, bool(self.values.get("names_rate")))
        )


def say(trainer: Trainer, blocks: str | Sequence[str] | None, kss: bool = False) -> Said:
    """Measure before any engine wraps the model; the main process says what was found.

    What cannot be measured does not stop a run: the answer then says why. The processes part the batches of the main process among
    them, unless the loss has a collective: it finds the others if every process measures all batches.

    Args:
        trainer: before its first step.
        blocks: path(s) of the list(s) of residual blocks.
        kss: whether KSS acts in the run: no run behind the model had it.
    """
    rate = float(trainer.args.learning_rate)
    try:
        with as_before(trainer):
            rate, found = _measured(trainer, blocks)
            said = sentence(found, rate, kss)
    except NonFiniteError as error:
        text = f"P(lost) is 100%: before the first step, {first_line(error)}."
        said = Said(1.0, text, {"status": "lost", "lr": rate, "p_lost": 1.0, "reasons": [first_line(error)]})
    except Exception as error:  # the run would have gone on without this answer
        said = _unknown(rate, [first_line(error)])
    answer: Said = from_main(said)
    return answer


def act(said: Said, mode: Mode, limit: float, trial: object = None) -> None:
    """Warn, or refuse to begin; a ``trial`` of Optuna ends, and its search goes on.

    Raises:
        InputError: ``mode`` is "stop" and the run is lost with a probability above ``limit`` that decides (`Said.decides`).
    """
    if said.p_lost is not None and said.p_lost > limit and said.decides and mode == "stop":
        text = f"learning_rate: {said.text} risk='stop' ends a run above {limit:g} (risk_limit)"
        prune(trial, text)
        raise InputError(text)
    quiet = said.p_lost is not None and said.p_lost <= limit
    logger.log(logging.INFO if quiet else logging.WARNING, "%s", said.text)


def prune(trial: object, text: str) -> None:
    """End a trial of Optuna, whose search goes on; nothing happens to a run that is no trial."""
    if type(trial).__module__.partition(".")[0] == "optuna":
        import optuna

        raise optuna.TrialPruned(text)


def _unknown(lr: float, reasons: Sequence[str], values: Mapping[str, Any] | None = None) -> Said:
    text = f"P(lost) at learning rate {lr:g} cannot be assessed: {reasons[0].rstrip('.')}."
    return Said(None, text, {**(values or {}), "status": "not assessable", "lr": lr, "reasons": list(reasons)})


def sentence(found: Forecast, lr: float, kss: bool = False) -> Said:
    """The forecast as one sentence and plain values."""
    prediction = found.prediction
    p, safe = prediction.p_lost(lr), prediction.rate_at()
    interval = prediction.interval(lr)
    values = {
        "status": prediction.status,
        "lr": lr,
        "p_lost": p,
        "p_lost_interval": list(interval) if interval else None,
        "lr_max": safe,
        "names_rate": prediction.names_rate,
        "reasons": list(prediction.reasons),
        "features": dict(found.numbers),
        "plan": found.plan.as_dict(),
        "kss": kss,
        "seconds": round(found.start.seconds, 2) if found.start else 0.0,
    }
    loss, norm = found.numbers.get("loss") or 0.0, found.numbers.get("gradient_norm") or 0.0
    if loss > _MOST_LOSS or norm > _MOST_NORM:
        what = f"the loss is {loss:.3g}" if loss > _MOST_LOSS else f"the gradient norm is {norm:.3g}"
        text = f"P(lost) is 100%: before the first step {what}, and a run above 50 (loss) or 500 (norm) counts as lost."
        return Said(1.0, text, values | {"p_lost": 1.0, "status": "lost"})
    if p is None or safe is None:
        return _unknown(lr, prediction.reasons, values)
    if interval and not prediction.decides(lr):
        low, high = map(percent, interval)
        said = Said(p, f"P(lost) at learning rate {lr:g} is {p:.0%} ({low} to {high}). {NO_ANSWER}", values)
    else:
        more = " (extrapolated)" if prediction.status == "extrapolated" else ""
        limit = f"It is below {SAFE:.0%} up to {safe:.2g}." if prediction.names_rate else NO_RATE
        said = Said(p, f"P(lost) at learning rate {lr:g} is {p:.0%}{more}. {limit}", values)
    return with_kss(said) if kss else said


def with_kss(said: Said) -> Said:
    """The same of a run in which KSS acts: the runs behind the model had none."""
    without = "" if said.p_lost is None else " This is for a run without KSS."
    return Said(said.p_lost, said.text + without, {**said.values, "kss": True})


def _measured(trainer: Trainer, blocks: str | Sequence[str] | None) -> tuple[float, Forecast]:
    """The planned peak learning rate, and what was measured."""
    from hf_rksp.forecast import BATCHES, forecast  # loads models too, which most runs do not need

    model: Any = trainer.model
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise InputError(
            "the weights are spread over the processes before training begins (zero.Init); use ZeRO-2, or rksp risk"
        )
    batches, max_steps = first_batches(trainer, BATCHES)
    trainer.state.max_steps = max_steps  # what a loss of one's own may divide by
    rate, plan = plan_of(trainer, max_steps, batches[0])
    own = _optimizer_of(trainer)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs = trainer._prepare_inputs(dict(batch))
        # Before an engine has moved it, a model may be elsewhere than where the run will be.
        return loss_beside(trainer, model, send_to_device(inputs, next(model.parameters()).device))

    # The name of a model does not tell whether its weights are trained: a configuration that was loaded has one too.
    with restored(model), torch.no_grad():
        stacks = find_stacks(model, blocks, functools.partial(loss, model, batches[0]))
    if weights_are_trained(model, stacks, find_norms(stacks)):
        plan = replace(plan, start="pretrained")
    return rate, forecast(
        model,
        batches,
        plan,
        loss=loss,
        optimizer=own,
        blocks=blocks,
        shared=True,
        progress=not trainer.args.disable_tqdm,
    )


def _optimizer_of(trainer: Trainer) -> torch.optim.Optimizer | None:
    """The optimizer that was passed, or that an earlier training has left; ``None`` if Trainer will make one."""
    return None if trainer.optimizer is None else unwrapped(trainer.optimizer)


def plan_of(trainer: Trainer, max_steps: int, batch: Mapping[str, Any]) -> tuple[float, Plan]:
    """The peak learning rate, and the plan that the arguments of a Trainer and the optimizer that was passed make.

    The weights are taken as random.

    Raises:
        InputError: something decides the learning rate that cannot be read.
    """
    args, model = trainer.args, uncompiled(trainer.model)  # type: ignore[arg-type]  # never None here
    base_of = getattr(model, "get_base_model", None)
    base: Any = base_of() if base_of else model
    name = type(base).__name__
    objective = next((objective for part, objective in _OBJECTIVES if part in name), None)
    if objective is None:
        raise InputError(f"the objective of {name} is none of causal, masked or classification")
    labels = batch.get("labels")
    if (
        objective == "classification"
        and isinstance(labels, Tensor)
        and (labels.is_floating_point() or labels.ndim != 1)
    ):
        raise InputError(
            "the labels are numbers, or a text has several; the runs behind the model have one class for each text"
        )
    own, rate = _optimizer_of(trainer), float(args.learning_rate)
    optimizer, beta2, decay = str(getattr(args.optim, "value", args.optim)), args.adam_beta2, args.weight_decay
    if own is not None:
        group = own.param_groups[0]
        optimizer, rate = type(own).__name__.lower(), float(group.get("initial_lr", group["lr"]))
        beta2, decay = float(group.get("betas", (0.9, beta2))[1]), float(group.get("weight_decay", 0.0))
    elif type(trainer).create_optimizer is not Trainer.create_optimizer or trainer.optimizer_cls_and_kwargs is not None:
        raise InputError("the trainer makes an optimizer of its own; pass it as optimizers=(optimizer, None)")
    if not rate > 0:
        raise InputError(f"the learning rate is {rate:g}")
    warmup, schedule = _schedule_of(trainer, max_steps)
    plan = Plan(
        optimizer=optimizer,
        beta2=beta2,
        weight_decay=decay,
        warmup=warmup,
        schedule=schedule,
        steps=max_steps,
        clip=args.max_grad_norm or None,
        tokens=_tokens(batch) * world_size() * args.gradient_accumulation_steps,
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        objective=objective,
    )
    return rate, plan


def _schedule_of(trainer: Trainer, max_steps: int) -> tuple[int, str]:
    """Steps of warm-up, and the schedule after it."""
    args, passed = trainer.args, trainer.lr_scheduler
    if passed is not None:
        lambdas = getattr(getattr(passed, "scheduler", passed), "lr_lambdas", None)
        if not lambdas:
            raise InputError(f"the warm-up of a {type(passed).__name__} cannot be read; set lr_scheduler_type instead")
        shares = [float(lambdas[0](step)) for step in range(max_steps)]
        top = max(shares)
        warmup = next(step for step, share in enumerate(shares) if share >= top)
        return warmup, "linear" if shares[-1] < 0.5 * top else "constant_with_warmup"
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if schedule not in SCHEDULES:
        raise InputError(f"lr_scheduler_type={schedule!r} is none of {', '.join(SCHEDULES)}")
    return (0 if schedule == "constant" else min(int(args.get_warmup_steps(max_steps)), max_steps)), schedule


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return max(int(mask.sum()), 1)
    return max((value.numel() for value in batch.values() if isinstance(value, Tensor)), default=1)
