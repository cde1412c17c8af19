"""The signals that are compared, each a number per reading that grows as things get worse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

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
from hf_rksp.capture import capture_transitions, find_stacks
from hf_rksp.capture.virtual_step import virtual_step
from hf_rksp.history.read import History
from hf_rksp.profile.directions import direction_of
from hf_rksp.profile.line_search import first_crossing
from hf_rksp.training.monitors.base import Monitor

from .scores import change

#: Signal -> monitor, key of its readings, and whether it is small if things are bad.
OF_MONITORS = {
    "curvature, one step": ("curvature", "ratio_step", False),
    "curvature, momentum": ("curvature", "ratio_momentum", False),
    "curvature along the update": ("curvature", "ratio_direction", False),
}
#: Signals that every layer has: monitor, key of a layer, whether it is small if things are bad, and what stands for the level of
#: all layers. The largest majority share is that of a layer whose tokens agree in healthy runs too, so its level is the mean.
OF_LAYERS = {
    "near-unit mass": ("spectrum", "near_unit_mass", False, "mean"),
    "spectral radius": ("spectrum", "spectral_radius", False, "worst"),
    "alignment: majority share": ("alignment", "majority_share", False, "mean"),
    "alignment: mean absolute": ("alignment", "mean_absolute", False, "worst"),
    "spectral norm": ("alignment", "spectral_norm", False, "worst"),
    "effective rank of the query-key update": ("attention", "effective_rank", True, "worst"),
    "largest attention logit": ("attention", "largest_logit", False, "worst"),
}
#: Signals of this file.
OWN = ("critical learning rate", "activation kurtosis", "update norm")
#: What stands for a number that is not finite, or a critical learning rate of zero.
_LARGE = 1e12
#: Signals that are made from the losses and gradient norms of all steps.
OF_CURVES = ("gradient norm", "loss", "CUSUM of the loss")
SIGNALS = (*OF_MONITORS, *OF_LAYERS, *OWN, *OF_CURVES)


def monitors(every: int, every_curvature: int) -> list[Monitor]:
    """The monitors of a run."""
    return [
        SpectralMonitor(MonitorConfig(every=every)),
        AlignmentMonitor(AlignmentConfig(every=every)),
        AttentionMonitor(AttentionConfig(every=every)),
        CurvatureMonitor(CurvatureConfig(every=every_curvature)),
    ]


class Own:
    """Critical learning rate and kurtosis of the batch of a step, before the step is made."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.stacks = find_stacks(model)
        self.guess = optimizer.param_groups[0]["lr"]
        self.found: dict[str, dict[int, float | None]] = {name: {} for name in OWN}

    def read(self, step: int, ids: Tensor, labels: Tensor, loss: float, lr: float, search: bool) -> None:
        """Gradients are there, and the weights have not moved; ``search`` looks for the critical learning rate too."""
        self.found["activation kurtosis"][step] = self._kurtosis(ids)
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            self.found["update norm"][step] = self.found["critical learning rate"][step] = _LARGE
            return
        direction = direction_of(self.model, self.optimizer).rule(gradients)
        squares = sum(float(part.double().square().sum()) for part in direction.values())
        self.found["update norm"][step] = lr * math.sqrt(squares)
        if search:
            self.found["critical learning rate"][step] = self._ratio(direction, ids, labels, loss, lr)

    @torch.no_grad()
    def _kurtosis(self, ids: Tensor) -> float:
        """Largest over blocks: kurtosis of all entries of a block's output, as trainscope defines it."""
        largest: list[float] = []

        def sink(stack: object, block: object, x: Tensor, y: Tensor) -> None:
            squares = (y - y.mean()).double().square()
            largest.append(float(squares.square().mean() / squares.mean().square()))

        with capture_transitions(self.stacks, sink, refuse=lambda stack, block, error: None):
            self.model(input_ids=ids)
        return max(largest)

    def _ratio(self, direction: dict[str, Tensor], ids: Tensor, labels: Tensor, loss: float, lr: float) -> float | None:
        """Learning rate over the critical one: that at which the step of the optimizer first raises the loss of its batch."""

        def rises(at: float) -> bool:
            with virtual_step(self.model, direction, at), torch.no_grad():
                return not float(self.model(input_ids=ids, labels=labels).loss) <= loss

        crossing = first_crossing(rises, self.guess)
        if crossing.lr is None:  # no learning rate raises the loss, or every one does
            return _LARGE if rises(self.guess) else 0.0
        self.guess = crossing.lr
        return lr / crossing.lr


def series(
    history: History, own: Own, losses: list[float], norms: list[float], every: int
) -> dict[str, dict[str, list[float | None]]]:
    """Signal -> form -> one number per reading, at steps 0, ``every``, 2 ``every``, ...; ``None`` for what was not read.

    Every signal has the form "level". One that each layer has is judged layer by layer too: "change" is the largest change of a
    layer against its own past. The change of the others is made from the level, by `scores.change`. Loss is
    the mean, and gradient norm the largest value, of the steps since the reading before.
    """
    places = range(len(losses) // every)
    found: dict[str, dict[str, list[float | None]]] = {}
    for signal, (monitor, key, falls) in OF_MONITORS.items():
        read = {row["step"]: row["values"].get(key) for row in history.of(monitor)}
        found[signal] = {"level": [_number(read.get(place * every), falls) for place in places]}
    for signal, (monitor, key, falls, over) in OF_LAYERS.items():
        rows = {row["step"]: row["layers"] for row in history.of(monitor)}
        layers: dict[Any, list[float | None]] = {}
        for place in places:
            for one in rows.get(place * every, ()):
                values = layers.setdefault((one.get("stack"), one.get("path")), [None] * len(places))
                values[place] = _number(one.get(key), falls)
        found[signal] = {"level": _over(list(layers.values()), over), "change": _largest_change(list(layers.values()))}
    for signal in OWN:
        found[signal] = {"level": [_number(own.found[signal].get(place * every), False) for place in places]}
    last = [max(0, (place - 1) * every + 1) for place in places]
    largest = [_number(max(norms[a : p * every + 1]), False) for a, p in zip(last, places, strict=True)]
    found["gradient norm"] = {"level": largest}
    found["loss"] = {
        "level": [
            _number(sum(part) / len(part), False)
            for a, p in zip(last, places, strict=True)
            if (part := losses[a : p * every + 1])
        ]
    }
    return found


def _over(layers: list[list[float | None]], over: str) -> list[float | None]:
    """The mean or the worst of the layers at each reading."""
    found: list[float | None] = []
    for at in zip(*layers, strict=True):
        known = [value for value in at if value is not None]
        found.append(_short(max(known) if over == "worst" else sum(known) / len(known)) if known else None)
    return found


def _largest_change(layers: list[list[float | None]]) -> list[float | None]:
    """The largest `change` of the layers at each reading."""
    changes = [change(values) for values in layers]
    largest = [max(at) for at in zip(*changes, strict=True)]
    return [None if value == -math.inf else _short(value) for value in largest]


def cusum(losses: list[float | None], slack: float = 0.05) -> list[float | None]:
    """One-sided CUSUM of the loss above the median of its last 20 readings: ``S <- max(0, S + loss - median - slack)``."""
    total, found, past = 0.0, [], []
    for loss in losses:
        if loss is None:
            found.append(None)
            continue
        if past:
            total = max(0.0, total + loss - sorted(past[-20:])[len(past[-20:]) // 2] - slack)
        past.append(loss)
        found.append(total)
    return found


def _number(value: Any, falls: bool) -> float | None:
    if value is None:
        return None
    value = value if math.isfinite(value) else -_LARGE if falls else _LARGE
    return _short(-value if falls else value)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
