"""What to try after a run has failed: each piece of advice follows from a sign or from a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy

from hf_rksp.doctor.checkpoint import Checkpoint
from hf_rksp.doctor.health import RATE_IS_KEPT
from hf_rksp.doctor.signs import EARLY, Sign
from hf_rksp.doctor.state import LoggedRun
from hf_rksp.report.kit.text import count

#: A gradient norm so many times the median, and above so much, is one that clipping is for.
_CLIPPED = 10.0
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def advice(
    run: LoggedRun | None,
    signs: Sequence[Sign],
    checkpoints: Sequence[Checkpoint],
    healthy: Checkpoint | None,
    alone: bool,
) -> list[str]:
    """Sentences, the first thing to do first; nothing if the run is not broken and no checkpoint is damaged.

    Args:
        run, signs: of the log.
        checkpoints: all that were found.
        healthy: the last healthy one.
        alone: whether one checkpoint was given, and not its run.
    """
    broken = any(sign.breaks for sign in signs)
    if not broken and not any(one.damaged for one in checkpoints):
        return ["The loss came back by itself: look at the batches of that step if it rises there again."] if any(
            sign.what == "spike" for sign in signs
        ) else []  # fmt: skip
    found = _where_to_go_on(checkpoints, healthy, alone)
    if not broken:
        return found
    names = {sign.what for sign in signs}
    # What came back by itself long before is no sign of this failure.
    leading = [
        sign.step for sign in signs if sign.step is not None and (sign.breaks or sign.what in EARLY or sign.by != "log")
    ]
    first = min(leading, default=None)
    if run is not None and first is not None and "nothing is learnt" not in names:
        found += _learning_rate(run, first, healthy)
    if "not finite" in names:
        if run is not None and not numpy.isnan(run.of("loss").values).any():
            found.append("Set logging_nan_inf_filter=False: the log then shows a loss that is not finite.")
        found.append("If the run was in float16, train in bf16, which has the range of float32.")
    if "nothing is learnt" in names:
        found.append("Count the labels of a batch that are not -100: a batch without any has no gradient.")
    norms = run.of("grad_norm").known().values if run is not None else numpy.empty(0)
    if len(norms) and norms.max() > _CLIPPED * max(1.0, float(numpy.median(norms))):
        found.append("Keep gradient clipping on: max_grad_norm=1.0 is the default of Trainer.")
    if "divergence" in names:
        found.append("KSS (RKSPTrainer, kss='on') slows the growth that leads to a spike; it helps most with RMSNorm.")
    return found


def _where_to_go_on(checkpoints: Sequence[Checkpoint], healthy: Checkpoint | None, alone: bool) -> list[str]:
    if healthy is not None:
        return [
            f"Go on from the last healthy checkpoint: trainer.train(resume_from_checkpoint={str(healthy.path)!r}). The same data "
            f"in the same order lead to the same place, so change something as well. {RATE_IS_KEPT}."
        ]
    if alone:
        folder = shlex.quote(str(checkpoints[0].path.absolute().parent)) if checkpoints else "RUN_DIR"
        return [f"Look at the other checkpoints of the run: rksp doctor {folder}"]
    unread = [one for one in checkpoints if one.weights.kind == "not read"]
    if unread:
        return [f"The weights of {len(unread)} checkpoints were not read: {unread[0].weights.note}."]
    usable = [one for one in checkpoints if one.weights.kind == "finite" and one.moments.kind == "unreadable"]
    if usable:
        return [
            f"The weights of {usable[-1].path.name} are finite, and its moments cannot be read: load the weights, and begin with a "
            "new optimizer and a short warm-up."
        ]
    if checkpoints:
        return ["No checkpoint is healthy: begin again with something changed, and save more often (save_steps)."]
    return []


def _learning_rate(run: LoggedRun, step: int, healthy: Checkpoint | None) -> list[str]:
    """What the learning rate was, whether it was still rising, and how to measure a safe one."""
    rates = run.of("learning_rate").known()
    if not rates:
        return []
    steps, values = rates.steps, rates.values
    before = values[steps <= step]
    at = float(before[-1] if len(before) else values[0])
    if not at > 0:
        return []
    peak, lower = int(steps[values.argmax()]), float(f"{at / 2:.2g}")
    rising = step < peak
    when, longer = ("while it was still rising", ", or a longer warm-up") if rising else ("at its peak or later", "")
    model = "MODEL" if healthy is None else shlex.quote(str(healthy.path))
    tokenizer = "" if healthy is None or _has_tokenizer(healthy.path) else " --tokenizer NAME"
    return [
        f"The first sign came at a learning rate of {at:.3g}, {when} (largest {float(values.max()):.3g}, at step {count(peak)}). "
        f"Try {lower:g}{longer}. Measure the risk before the run: rksp risk {model} --lr {lower:g}{tokenizer}"
    ]


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)
