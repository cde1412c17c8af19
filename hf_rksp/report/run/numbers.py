"""What a history says in numbers: one series per quantity, made once, and the layers of each reading."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hf_rksp.history.read import History, is_training, layers_at
from hf_rksp.history.schema import Row
from hf_rksp.json_data import finite, items
from hf_rksp.quantities import Quantity
from hf_rksp.report.kit.text import line
from hf_rksp.report.run.rise import Rise, Series, largest_rise

_MOST = 1e150
#: Entries of a row that are no series.
_NO_SERIES = ("kind", "step", "epoch", "monitor", "layers", "values")


@dataclass(frozen=True)
class Extreme:
    """A value and where it was found: a step, or a layer."""

    value: float
    where: Any


class Run:
    """A history, and the series in it. ``name`` and ``events`` are those of the history.

    Args:
        history: the run.
        before: the same run when its history was shorter; series go on from those of it.
    """

    def __init__(self, history: History, before: Run | None = None) -> None:
        self.history, self._before = history, _Logged()
        if before is not None and _begins_with(history.logs, before.history.logs):
            self._before = before._all_logged
        self.name, self.events = line(history.name, 60), history.events

    def logged(self, key: str) -> Series:
        """A key of the log rows, at the steps whose row has it; empty if no row holds a number (the loss is kept)."""
        series = self._all_logged.series.get(key, [])
        return series if key == "loss" or key in self.log_keys else []

    def measured(self, monitor: str, name: str) -> Series:
        """A value of the readings of a monitor; empty if no reading holds a number."""
        return self._measured.get((monitor, name), [])

    def abandoned(self, key: str, monitor: str = "") -> list[Series]:
        """The same of the attempts that the run went back from, one series per attempt."""
        found: list[Series] = []
        for row in self.history.abandoned:
            values: Mapping[str, Any] = row.get("values", {}) if monitor else row
            if key in values and row.get("monitor", "") == monitor and (monitor or is_training(row)):
                if not found or row["step"] <= found[-1][-1][0]:
                    found.append([])
                found[-1].append((row["step"], finite(values[key])))
        return found

    @cached_property
    def log_keys(self) -> dict[str, None]:
        """The keys that have a series, in the order in which they were logged first."""
        return dict.fromkeys(key for key, series in self._all_logged.series.items() if key == "loss" or _any(series))

    @cached_property
    def rise(self) -> Rise | None:
        """The largest rise of the loss."""
        return largest_rise(self.logged("loss"))

    @property
    def training_steps(self) -> list[int]:
        """Steps of the logs that say something about training, in their order."""
        return self._all_logged.training

    @cached_property
    def monitors(self) -> dict[str, list[str]]:
        """Monitor -> names of its values that have a series, the described ones first and in the order of the run row."""
        found: dict[str, list[str]] = {row["monitor"]: [] for row in self.history.readings}
        order = {key: place for place, key in enumerate(self.history.quantities)}
        for monitor, name in sorted(self._measured, key=lambda pair: order.get("/".join(pair), len(order))):
            found[monitor].append(name)
        return found

    @cached_property
    def steps(self) -> list[int]:
        """Steps of all logs and readings, in no order."""
        return [row["step"] for row in (*self.history.logs, *self.history.readings)]

    @cached_property
    def _all_logged(self) -> _Logged:
        before = self._before
        found = _Logged(before.rows, list(before.training), {key: list(one) for key, one in before.series.items()})
        self._before = _Logged()
        for row in self.history.logs[found.rows :]:
            step, training = row["step"], is_training(row)
            if training:
                found.training.append(step)
            for key, value in row.items():
                if key not in _NO_SERIES and (training or key.startswith("eval_")):
                    found.series.setdefault(key, []).append((step, _drawable(value)))
        found.rows = len(self.history.logs)
        return found

    @cached_property
    def _measured(self) -> dict[tuple[str, str], Series]:
        found: dict[tuple[str, str], Series] = {}
        for row in self.history.readings:
            for name, value in row["values"].items():
                found.setdefault((row["monitor"], name), []).append((row["step"], _drawable(value)))
        return {key: series for key, series in found.items() if _any(series)}


@dataclass
class _Logged:
    """What the first ``rows`` log rows say: steps that trained, and a series per key."""

    rows: int = 0
    training: list[int] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)


def _begins_with(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether ``others`` are the first of ``rows``: the same objects, because a row that was replaced is another one."""
    return len(others) <= len(rows) and all(map(operator.is_, rows, others))


def _drawable(value: Any) -> float | None:
    """``value`` if it is a number that fits an axis: the span of two larger ones has no finite size."""
    number = value if type(value) is float else finite(value)
    return number if number is not None and abs(number) < _MOST else None


def _any(series: Series) -> bool:
    return any(value is not None for _, value in series)


def described(runs: Sequence[Run], key: str) -> Quantity | None:
    """The quantity of a key, as the first run that describes it has it."""
    return next((run.history.quantities[key] for run in runs if key in run.history.quantities), None)


def heading(name: str) -> str:
    """The name of a monitor or another part for readers; a name without a vowel is an abbreviation."""
    words = line(name, 40).replace("_", " ")
    return words[:1].upper() + words[1:] if re.search("[aeiouy]", words.lower()) else words.upper()


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


#: Readings of each run.
Readings = Sequence[Sequence[Row]]


def layer_names(readings: Readings) -> list[str]:
    """Every layer of every run in order of depth: the longest reading of each run, runs one after the other."""
    names: dict[str, None] = {}
    for rows in readings:
        for row in sorted(rows, key=lambda row: -len(items(row, "layers"))):
            names |= dict.fromkeys(layers_at(row))
    return list(names)


def layer_labels(readings: Readings) -> dict[str, str]:
    """Layer -> what an axis calls it: its number, if all runs have one stack."""
    names = layer_names(readings)
    rows = {name: layer for run in readings for row in run for name, layer in layers_at(row).items()}
    if len({str(layer.get("stack")) for layer in rows.values()}) == 1:
        labels = {name: str(rows[name].get("index", place)) for place, name in enumerate(names)}
        if len(set(labels.values())) == len(labels):
            return labels
    return {name: name for name in names}


def steps_of(readings: Readings) -> list[int]:
    """The steps at which any run has a reading."""
    return sorted({row["step"] for rows in readings for row in rows})


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
