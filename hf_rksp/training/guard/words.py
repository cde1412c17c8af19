"""What the guard says: one sentence for each thing that it has done, and what to try after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_rksp.doctor.health import RATE_IS_KEPT

#: Weights that are named if their gradients are not finite.
_NAMED = 3


def with_weights(text: str, rule: str, broken: Sequence[str]) -> str:
    """``text`` of a finding, with the weights whose gradients are not finite."""
    if not (broken and rule.startswith("gradient norm")):
        return text
    more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    return f"{text} Not finite: {', '.join(broken[:_NAMED])}{more}."


def stop_text(
    step: int,
    findings: Sequence[str],
    done: str,
    healthy: tuple[int, Path] | None,
    rate: float | None,
    run: Path | None,
    trainer: bool,
) -> str:
    """Why the run ends, what was tried, and what to do next.

    Args:
        step: at which it ends.
        findings: sentences on that step.
        done: what the guard has done before, in words.
        healthy: the last healthy checkpoint, with its step.
        rate: the learning rate at that step.
        run: folder of the run.
        trainer: whether a Trainer makes the run, and not a loop of its own.
    """
    parts = [f"The guard stopped the run at step {step}.", *findings]
    parts.append(f"Before that it had {done}." if done else "")
    if healthy is not None:
        how = f"go on with train(resume_from_checkpoint={str(healthy[1])!r})" if trainer else "load it to go on"
        parts.append(f"The last healthy checkpoint is {healthy[1]}: {how}.")
    else:
        parts.append(f"No checkpoint is marked as healthy: save more often{' (save_steps)' if trainer else ''}.")
    if rate:
        parts.append(f"Change something as well: try a learning rate of {rate / 2:.2g} instead of {rate:.2g}.")
        if healthy is not None:
            own = "The state of the optimizer in the checkpoint holds the old learning rate"
            parts.append(f"{RATE_IS_KEPT if trainer else own}.")
    parts.append(f"More: rksp doctor {run or 'OUTPUT_DIR'}")
    return " ".join(part for part in parts if part)


def done_in_words(used: dict[str, int]) -> str:
    """What was done so far: "left out 10 steps, cut the learning rate 3 times"."""
    forms = {
        "skip": ("left out a step", "left out {} steps"),
        "cut": ("cut the learning rate once", "cut the learning rate {} times"),
        "kss": ("switched KSS on", "switched KSS on"),
        "rollback": ("gone back to a healthy checkpoint", "gone back to a healthy checkpoint {} times"),
    }
    said = [
        one if used[action] == 1 else many.format(used[action])
        for action, (one, many) in forms.items()
        if used.get(action)
    ]
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
