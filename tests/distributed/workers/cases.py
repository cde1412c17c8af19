"""What the workers train: tiny runs, each defined by the samples of a step and not by the number of processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEPS, SEQUENCES, TOKENS, LONG, WIDTH, LAYERS, VOCABULARY = 20, 8, 24, 96, 32, 3, 64
#: Steps in float32, where every step more blows up what the first ones rounded.
FEW = 4


@dataclass(frozen=True)
class Case:
    """A training run of eight sequences a step.

    Attributes:
        kss: settings of KSS, None for no KSS.
        monitor: settings of the monitor, None for no monitor.
        batch: sequences of a microbatch, over all processes together.
        accumulate: microbatches a step.
        data: "unequal" lengths and numbers of labels, so that padding and labels differ between ranks; "equal"; "long";
            "copies" of one long sequence.
        mean: each process takes the mean over its own tokens, instead of dividing by the labels of the whole step.
        double: float64 throughout, the loss included. Batches of another shape, other processors and other numbers of
            processes round differently; in float64 that hides nothing. Without it float32, as users train.
        resume: stop after half the steps, and go on in a new trainer from the checkpoint.
        depth: lock the last block, and unlock it after half the steps.
        ramp: steps in which the updates of the unlocked block grow.
        curvature: read the curvature in every step, of a run with Adam.
        guard: what the guard does about a failing step.
        nan_at: the step at which the loss of the last process alone is NaN.
    """

    kss: dict[str, Any] | None = None
    monitor: dict[str, Any] | None = None
    batch: int = SEQUENCES
    accumulate: int = 1
    data: str = "unequal"
    mean: bool = False
    double: bool = True
    resume: bool = False
    steps: int = STEPS
    curvature: bool = False
    depth: bool = False
    ramp: int = 0
    guard: str = "off"
    nan_at: int = -1


BALANCED: dict[str, Any] = {"rank": 8}
PAPER: dict[str, Any] = {"schedule": "paper", "rank": 8, "every": 1, "layer_fraction": 0.5}
BATCH: dict[str, Any] = {"every": 10, "data": "batch", "rank": 16}
PROBE: dict[str, Any] = BATCH | {"data": "probe"}
#: Directions and layers are drawn anew for each microbatch. All of them, and the draws are gone from a comparison of cuts.
ALL: dict[str, Any] = {"rank": WIDTH, "layer_fraction": 1.0}
EXACT: dict[str, Any] = {"exact_accumulation": True}
ONE_BY_ONE: dict[str, Any] = {"batch": 1, "accumulate": 8}
PAIRS: dict[str, Any] = {"batch": 2, "accumulate": 4}

FLOAT32: dict[str, Any] = {"double": False, "steps": FEW}
OFTEN: dict[str, Any] = {"every": 2}

CASES = {
    "off": Case(None, BATCH),
    "off accumulated": Case(None, BATCH, **PAIRS),
    "off one by one": Case(None, BATCH, **ONE_BY_ONE),
    "balanced": Case(BALANCED, BATCH),
    "paper": Case(PAPER, PROBE),
    "balanced accumulated": Case(BALANCED, **PAIRS),
    "paper accumulated": Case(PAPER, **PAIRS),
    "balanced mean": Case(BALANCED, **PAIRS, data="equal", mean=True),
    "paper mean": Case(PAPER, **PAIRS, data="equal", mean=True),
    "paper resumed": Case(PAPER, PROBE, resume=True),
    "balanced exact": Case(BALANCED | EXACT, BATCH, **PAIRS),
    "balanced exact one by one": Case(BALANCED | EXACT, BATCH, **ONE_BY_ONE),
    "paper exact": Case(PAPER | EXACT, PROBE, **PAIRS),
    "paper exact one by one": Case(PAPER | EXACT, PROBE, **ONE_BY_ONE),
    "balanced once": Case(BALANCED, BATCH, steps=1),
    "paper once": Case(PAPER, PROBE, steps=1),
    "float32 balanced": Case(BALANCED, BATCH | OFTEN, **FLOAT32),
    "float32 paper": Case(PAPER, PROBE | OFTEN, **FLOAT32),
    "float32 balanced accumulated": Case(BALANCED, **PAIRS, **FLOAT32),
    "float32 paper accumulated": Case(PAPER, **PAIRS, **FLOAT32),
    "float32 balanced exact": Case(BALANCED | EXACT, **PAIRS, **FLOAT32),
    "float32 paper resumed": Case(PAPER, PROBE | OFTEN, resume=True, **FLOAT32),
    "balanced copies": Case(BALANCED | ALL, data="copies", steps=5),
    "balanced copies one by one": Case(BALANCED | ALL, data="copies", steps=5, **ONE_BY_ONE),
    "paper copies": Case(PAPER | ALL, data="copies", steps=5),
    "paper copies one by one": Case(PAPER | ALL, data="copies", steps=5, **ONE_BY_ONE),
    "paper mean copies": Case(PAPER | ALL, data="copies", steps=5, mean=True),
    "paper mean copies one by one": Case(PAPER | ALL, data="copies", steps=5, mean=True, **ONE_BY_ONE),
    "off equal": Case(data="equal"),
    "balanced equal": Case(BALANCED, data="equal"),
    "paper mean equal": Case(PAPER | {"layer_fraction": 1.0}, data="equal", mean=True),
    "paper mean exact one by one": Case(PAPER | {"layer_fraction": 1.0} | EXACT, data="equal", mean=True, **ONE_BY_ONE),
    "balanced equal one by one": Case(BALANCED, data="equal", **ONE_BY_ONE),
    "paper equal": Case(PAPER | {"layer_fraction": 1.0}, data="equal"),
    "paper equal one by one": Case(PAPER | {"layer_fraction": 1.0}, data="equal", **ONE_BY_ONE),
    "curvature": Case(data="equal", mean=True, steps=FEW, curvature=True),
    "float32 curvature": Case(data="equal", mean=True, curvature=True, **FLOAT32),
    "depth": Case(depth=True),
    "depth resumed": Case(depth=True, resume=True),
    "float32 depth": Case(depth=True, **FLOAT32),
    "depth ramp": Case(depth=True, ramp=4),
    "float32 depth ramp": Case(depth=True, ramp=2, **FLOAT32),
    "float32 depth resumed": Case(depth=True, resume=True, **FLOAT32),
    "guard skip": Case(guard="skip", nan_at=3, steps=6),
    "guard back": Case(guard="rollback", nan_at=4, steps=7),
    "float32 guard skip": Case(guard="skip", nan_at=1, **FLOAT32),
    "float32 guard back": Case(guard="rollback", nan_at=4, double=False, steps=6),
    "off long": Case(data="long"),
    "balanced long": Case(BALANCED, data="long"),
    "balanced long one by one": Case(BALANCED, data="long", **ONE_BY_ONE),
    "paper long": Case(PAPER | {"layer_fraction": 1.0}, data="long"),
    "paper long one by one": Case(PAPER | {"layer_fraction": 1.0}, data="long", **ONE_BY_ONE),
}
