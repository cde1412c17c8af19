"""What a Trainer says of its run: for the history, for the guard, and whether a new learning rate is used at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_rksp.capture.identity import model_identity
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.doctor.health import RATE_IS_KEPT
from hf_rksp.machine import versions
from hf_rksp.ranks import world_size
from hf_rksp.training.monitors.base import Monitor
from hf_rksp.training.preconditioner import planned_rate

logger = logging.getLogger(__name__)
#: Arguments that the history has, by the names that they have there.
_ARGUMENTS = {
    "name": "run_name",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "max_grad_norm": "max_grad_norm",
}


def several_devices(number: int) -> str:
    """Why nothing is measured if one process has several devices."""
    return f"{number} devices in one process: DataParallel runs copies of the model side by side, and hides the blocks"


def lives(args: TrainingArguments, state: TrainerState) -> float | None:
    """Steps after which a checkpoint is deleted; ``None`` if it is not, or if that cannot be told."""
    limit, strategy = getattr(args, "save_total_limit", None), getattr(args, "save_strategy", None)
    strategy = str(getattr(strategy, "value", strategy))
    if not limit or limit < 0 or strategy not in ("steps", "epoch"):
        return None
    every = float(state.save_steps or 0) if strategy == "steps" else state.max_steps / max(state.num_train_epochs, 1)
    return limit * every or None


def described(
    args: TrainingArguments,
    model: nn.Module,
    optimizer: object,
    kss: KSSConfig | None,
    spectrum: MonitorConfig | None,
    monitors: Sequence[Monitor],
) -> dict[str, Any]:
    """Model, setup and versions, for the run row of the history.

    Args:
        kss, spectrum: settings of what is on.
        monitors: the other parts of the run.
    """
    others: dict[str, Any] = {one.name: getattr(one, "config", None) for one in monitors}
    # A Trainer of another library has arguments of its own.
    setup: dict[str, Any] = {name: getattr(args, argument, None) for name, argument in _ARGUMENTS.items()}
    if (rate := planned_rate(optimizer)) is not None:
        setup["learning_rate"] = rate
    setup |= {
        "world_size": world_size(),
        "kss": asdict(kss) if kss else None,
        "spectrum": asdict(spectrum) if spectrum else None,
        **{name: asdict(config) for name, config in others.items() if config is not None},
    }
    return {"model": model_identity(model), "setup": setup, "versions": versions()}


def see_rate(asked: float | None, before: float | None, optimizer: object) -> None:
    """Warn if a run goes on with another learning rate than the one that was asked for now.

    Args:
        asked: of the arguments.
        before: of the arguments when the run began; ``None`` if nobody has said.
    """
    used = planned_rate(optimizer)
    if before not in (None, asked) and used is not None and used != asked:
        logger.warning("learning_rate=%g has no effect, the run goes on with %g. %s", asked, used, RATE_IS_KEPT)
