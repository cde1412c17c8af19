"""What a history says in numbers: one series a quantity, and the figures of each profile over its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rksp.history.read import History, Row, is_training, layers_at
from hf_rksp.json_data import finite, items

#: Step and value; ``None`` is a number that was not finite.
Series = list[tuple[int, float | None]]


@dataclass(frozen=True)
class Extreme:
    """A value and where it was found: a step, or a layer."""

    value: float
    where: Any


def logged(history: History, key: str) -> Series:
    """A key of the log lines, at the steps whose line has it; empty where no line holds a number."""
    found = [
        (row["step"], finite(row[key]))
        for row in history.logs
        if key in row and (key.startswith("eval_") or is_training(row))
    ]
    return found if key == "loss" or any(value is not None for _, value in found) else []


def profiled(history: History, of: Callable[[Row], float | None]) -> Series:
    """A number of each profile."""
    found = [(row["step"], of(row)) for row in history.spectra]
    return found if any(value is not None for _, value in found) else []


def mean(profile: Row, key: str) -> float | None:
    """Mean over the layers that have the quantity."""
    values = [value for _, value in _values(profile, key)]
    return sum(values) / len(values) if values else None


def largest(profile: Row, key: str) -> Extreme | None:
    """The largest value over the layers, and the layer."""
    values = _values(profile, key)
    if not values:
        return None
    name, value = max(values, key=lambda pair: pair[1])
    return Extreme(value, name)


def top(profile: Row, key: str) -> float | None:
    """The largest value alone."""
    found = largest(profile, key)
    return found.value if found else None


def _values(profile: Row, key: str) -> list[tuple[str, float]]:
    pairs = [(name, finite(layer.get(key))) for name, layer in layers_at(profile).items()]
    return [(name, value) for name, value in pairs if value is not None]


def layer_names(histories: Sequence[History]) -> list[str]:
    """Every layer of every run in order of depth: the longest profile of each run, runs one after the other."""
    names: dict[str, None] = {}
    for history in histories:
        for profile in sorted(history.spectra, key=lambda row: -len(items(row, "layers"))):
            names |= dict.fromkeys(layers_at(profile))
    return list(names)


def layer_labels(histories: Sequence[History]) -> dict[str, str]:
    """Layer -> what an axis calls it: its number, where all runs have one stack alone."""
    names = layer_names(histories)
    rows = {name: layer for run in histories for profile in run.spectra for name, layer in layers_at(profile).items()}
    if len({str(layer.get("stack")) for layer in rows.values()}) == 1:
        labels = {name: str(rows[name].get("index", place)) for place, name in enumerate(names)}
        if len(set(labels.values())) == len(labels):
            return labels
    return {name: name for name in names}


def profile_steps(histories: Sequence[History]) -> list[int]:
    """The steps at which any run was profiled."""
    return sorted({profile["step"] for history in histories for profile in history.spectra})


def gaps(series: Series) -> list[tuple[int, int]]:
    """First and last step of each stretch without a finite number."""
    found: list[list[int]] = []
    before: float | None = 0.0
    for step, value in series:
        if value is None:
            if before is None:
                found[-1][1] = step
            else:
                found.append([step, step])
        before = value
    return [(first, last) for first, last in found]


def peak(series: Series) -> Extreme | None:
    """The largest value, and the first step that has it."""
    known = [(value, step) for step, value in series if value is not None]
    return Extreme(*max(known, key=lambda pair: (pair[0], -pair[1]))) if known else None
