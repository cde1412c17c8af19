"""What to try after a run has failed: each piece of advice follows from a sign or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from hf_rksp.doctor.checkpoint import Checkpoint
from hf_rksp.doctor.signs import Sign
from hf_rksp.doctor.state import LoggedRun
from hf_rksp.report.kit.text import count, number

#: A gradient norm so many times the median, and above so much, is one that clipping is for.
_CLIPPED = 10.0


def advice(
    run: LoggedRun | None, signs: Sequence[Sign], checkpoints: Sequence[Checkpoint], healthy: Checkpoint | None
) -> list[str]:
    """Sentences, the first thing to do first; nothing if there is no sign and every checkpoint is sound."""
    broken = any(sign.breaks for sign in signs) or any(not one.sound for one in checkpoints)
    if not (signs or broken):
        return []
    found = []
    if broken and healthy is not None:
        found.append(
            f"Go on from the last healthy checkpoint: trainer.train(resume_from_checkpoint={str(healthy.path)!r}). The same data "
            "in the same order lead to the same place, so change something below as well."
        )
    elif broken and checkpoints:
        found.append(
            "No checkpoint is healthy: begin again with something below changed, and save more often (save_steps)."
        )
    names = {sign.what for sign in signs}
    first = next((sign.step for sign in signs if sign.step is not None), None)
    if run is not None and first is not None:
        found += _learning_rate(run, first, healthy)
    if names & {"gradient norm not finite", "loss is 0"}:
        found.append("Set logging_nan_inf_filter=False: the log then shows a loss that is not finite.")
        found.append("If the run was in float16, train in bf16, which has the range of float32.")
    if "loss is 0" in names:
        found.append("Count the labels of a batch that are not -100: a batch without any has the loss 0, or NaN.")
    if "spike" in names and not broken:
        found.append(
            "The loss came back by itself. If it rises at the same step again, look at the batches of that step."
        )
    norms = run.of("grad_norm").known().values if run is not None else numpy.empty(0)
    if len(norms) and norms.max() > _CLIPPED * max(1.0, float(numpy.median(norms))):
        found.append("Keep gradient clipping on: max_grad_norm=1.0 is the default of Trainer.")
    found.append(
        "Watch the next run: RKSPTrainer with alignment_every=10 names the layer that leaves its past, and KSS (kss=True) slows "
        "the growth that leads to a spike."
    )
    return found


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
    model = "MODEL" if healthy is None else str(healthy.path)
    return [
        f"The first sign came at a learning rate of {number(at)}, {when} (largest {number(float(values.max()))}, at step "
        f"{count(peak)}). Try {lower:g}{longer}. Measure the risk before the run: rksp risk {model} --lr {lower:g}"
    ]
