"""Whether the actions of a guard can be taken in a run; asked before its first step."""

from __future__ import annotations

import logging

from hf_rksp.config.guard import GuardConfig
from hf_rksp.errors import InputError
from hf_rksp.ranks import current_ranks
from hf_rksp.training.watch import Watch

logger = logging.getLogger(__name__)


def check_marks(config: GuardConfig, watch: Watch) -> None:
    """See whether checkpoints live long enough to be found healthy.

    Raises:
        InputError: they do not, and the guard may have to go back to one.
    """
    lives = watch.lives
    if lives is None or lives >= config.healthy:
        return
    text = (
        f"a checkpoint is deleted after {lives:g} steps (save_total_limit), and is healthy after {config.healthy} "
        f"(guard_healthy); pass a larger save_total_limit, save less often, or pass guard_healthy={max(int(lives), 1)}"
    )
    if "rollback" in config.chosen:
        raise _refusal(config, text)
    if current_ranks().rank == 0:
        logger.info("No checkpoint will get a verdict: %s", text)


def check_actions(config: GuardConfig, watch: Watch) -> None:
    """See whether a guard that acts can take each of its actions.

    Raises:
        InputError: one cannot be taken; the message says why.
    """
    if not watch.acts:
        raise _refusal(config, "RKSPCallback alone cannot act on a run; use RKSPTrainer, or pass 'warn'")
    if watch.gate is None:
        raise _refusal(config, "the optimizer is not known; pass it to TrainingRun as optimizer=")
    if not watch.gate.can_leave_out:
        raise _refusal(config, "this optimizer moves the weights within the backward pass; pass another one, or 'warn'")
    if "kss" in config.chosen and not watch.kss_by_auto and not watch.dormant:
        raise _refusal(
            config,
            "KSS is on from the first step, so it cannot be switched on; pass kss='off', or leave kss out"
            if watch.stacks
            else "the model has no residual blocks, so there is no KSS to switch on; leave kss out",
        )
    if "rollback" in config.chosen and watch.rewind is None:
        raise _refusal(
            config,
            "no checkpoint with moments is saved in this run; save some, or leave rollback out"
            if watch.says_losses
            else "nothing loads a checkpoint into the run; pass rewind= to TrainingRun, or leave rollback out",
        )


def _refusal(config: GuardConfig, why: str) -> InputError:
    return InputError(f"actions={config.actions!r}: {why}")
