"""The signals that are compared: what a run keeps of them, and each as numbers per reading that grow as things get worse."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_rksp import (
    AlignmentConfig,
    AlignmentMonitor,
    AttentionConfig,
    AttentionMonitor,
    CurvatureConfig,
    CurvatureMonitor,
    MonitorConfig,
    SpectralMonitor,
)  # fmt: skip
from hf_rksp.history.read import History
from hf_rksp.training.monitors.base import Monitor

from .scores import change

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Signal:
    """What is read, and how it is judged.

    Attributes:
        monitor, key: where it stands in the history; no monitor for what `own` measures and what the losses give.
        layers: whether every layer has it.
        falls: whether it is small if things are bad.
        either: whether its change counts in both directions.
        level: what stands for the level of all layers. "mean" where one layer is extreme in healthy runs too.
        floor: scatter that a change is measured in at least.
        changes: whether it has a change. CUSUM is one.
    """

    monitor: str | None = None
    key: str = ""
    layers: bool = False
    falls: bool = False
    either: bool = False
    level: Literal["worst", "mean"] = "worst"
    floor: float = 0.0
    changes: bool = True


SIGNALS: dict[str, Signal] = {
    "near-unit mass": Signal("spectrum", "near_unit_mass", True, either=True, level="mean", floor=0.01),
    "spectral radius": Signal("spectrum", "spectral_radius", True),
    "alignment: majority share": Signal("alignment", "majority_share", True, level="mean", floor=0.01),
    "alignment: mean absolute": Signal("alignment", "mean_absolute", True, floor=0.01),
    "spectral norm": Signal("alignment", "spectral_norm", True),
    "curvature, one step": Signal("curvature", "ratio_step"),
    "curvature, momentum": Signal("curvature", "ratio_momentum"),
    "curvature along the update": Signal("curvature", "ratio_direction"),
    "critical learning rate": Signal(key="critical learning rate"),
    "effective rank of the query-key update": Signal("attention", "effective_rank", True, falls=True, either=True, floor=0.05),
    "largest attention logit": Signal("attention", "largest_logit", floor=0.1),
    "activation kurtosis": Signal(key="activation kurtosis", floor=0.1),
    "update norm": Signal(key="update norm"),
    "gradient norm": Signal(),
    "loss": Signal(floor=0.05),
    "CUSUM of the loss": Signal(changes=False),
}  # fmt: skip
#: What stands for a number that is not finite.
LARGE = 1e12
#: Bits of a float32 that a row keeps: ten of the fraction, which is a thousandth.
_KEPT = np.uint32(0xFFFFE000)


def monitors(every: int, every_curvature: int) -> list[Monitor]:
    """The monitors of a run."""
    return [
        SpectralMonitor(MonitorConfig(every=every)),
        AlignmentMonitor(AlignmentConfig(every=every)),
        AttentionMonitor(AttentionConfig(every=every)),
        CurvatureMonitor(CurvatureConfig(every=every_curvature)),
    ]


def kept(history: History, own: Mapping[str, Mapping[int, float]], steps: int, every: int) -> dict[str, str]:
    """Signal -> its readings at steps 0, ``every``, 2 ``every``, ... of every layer, packed by `packed`.

    Args:
        own: what `own.Own` has found.
        steps: of the run.

    Raises:
        RuntimeError: a signal has no reading at all.
    """
    places = range(-(-steps // every))
    found = {}
    for name, signal in SIGNALS.items():
        if signal.monitor is None and not signal.key:
            continue
        if signal.monitor is None:
            layers = {name: dict(own[signal.key])}
        elif signal.layers:
            layers = {}
            for row in history.of(signal.monitor):
                for one in row["layers"]:
                    layers.setdefault(f"{one.get('stack')} {one.get('path')}", {})[row["step"]] = one.get(signal.key)
        else:
            layers = {name: {row["step"]: row["values"].get(signal.key) for row in history.of(signal.monitor)}}
        values = np.array([[_number(read.get(place * every)) for place in places] for read in layers.values()])
        if not values.size or np.isnan(values).all():
            raise RuntimeError(f"{name}: no reading in {steps} steps")
        found[name] = packed(values)
    return found


def packed(values: Array) -> str:
    """Numbers of shape ``(layers, readings)``, NaN for none, as text; to a thousandth."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = np.where(np.isnan(values), bits, (bits + np.uint32(0x1000)) & _KEPT)
    return f"{len(values)} {base64.b85encode(zlib.compress(bits.tobytes(), 9)).decode()}"


def unpacked(text: str) -> Array:
    """What `packed` has packed."""
    layers, _, data = text.partition(" ")
    numbers = np.frombuffer(zlib.decompress(base64.b85decode(data)), np.float32)
    return numbers.reshape(int(layers), -1).astype(np.float64)


def forms(row: Mapping[str, Any], name: str, every: int) -> dict[str, Array]:
    """Both forms of a signal of a run, shape ``(readings,)``; NaN where nothing is known.

    "level" is the signal itself, and "change" its deviation from the run's own past, by `scores.change`; if each layer has it, the
    largest deviation of a layer. Loss is the mean, and gradient norm the largest value, of the steps since the reading before.
    """
    signal = SIGNALS[name]
    values = -_layers(row, name, every) if signal.falls else _layers(row, name, every)
    known = ~np.isnan(values).all(0)
    level, moved = np.full((2, values.shape[1]), np.nan)
    over = np.nanmean if signal.level == "mean" else np.nanmax
    level[known] = over(values[:, known], axis=0)
    changes = change(values, signal.floor)
    changes = np.abs(changes) if signal.either else changes
    known = ~np.isnan(changes).all(0)
    moved[known] = np.nanmax(changes[:, known], axis=0)
    return {"level": level, "change": moved}


def _layers(row: Mapping[str, Any], name: str, every: int) -> Array:
    if name in row["signals"]:
        return unpacked(row["signals"][name])
    curve, over = (row["norms"], max) if name == "gradient norm" else (row["losses"], np.mean)
    steps = [LARGE if one is None else one for one in curve]  # what is not finite stands as None
    values = np.array([over(steps[max(0, at - every + 1) : at + 1]) for at in range(0, len(steps), every)])
    return (cusum(values) if name == "CUSUM of the loss" else values)[None]


def cusum(losses: Sequence[float] | Array, slack: float = 0.05) -> Array:
    """One-sided CUSUM of the loss above the median of its last 20 readings: ``S <- max(0, S + loss - median - slack)``."""
    total, found = 0.0, []
    for place, loss in enumerate(losses):
        if place:
            total = max(0.0, total + float(loss) - float(np.median(losses[max(0, place - 20) : place])) - slack)
        found.append(total)
    return np.array(found)


def _number(value: float | None) -> float:
    """NaN for what was not read; a number that is not finite is large."""
    return math.nan if value is None else value if math.isfinite(value) else LARGE
