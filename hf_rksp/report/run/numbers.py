"""What a history says in numbers: one series per quantity, made once, and the layers of each reading."""

from __future__ import annotations

import operator
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hf_rksp.history.read import History, is_training, layers_at
from hf_rksp.history.schema import Row
from hf_rksp.json_data import finite
from hf_rksp.quantities import Quantity
from hf_rksp.report.kit.text import line
from hf_rksp.report.run.layered import Layered, names_in
from hf_rksp.report.run.rise import Rise, largest_rise
from hf_rksp.report.run.series import Extreme, Series, drawable

#: Entries of a row that are no series.
_NO_SERIES = ("kind", "step", "epoch", "monitor", "layers", "values")


class Run:
    """A history, and the series in it. ``name`` and ``events`` are those of the history.

    Args:
        history: the run.
        before: the same run when its history was shorter; series go on from those of it.
    """

    def __init__(self, history: History, before: Run | None = None) -> None:
        self.history, self.name, self.events = history, line(history.name, 60), history.events
        self._kept: _Kept = _Kept() if before is None else before._kept.going_on(history, before.history)
        self._kept.read(history)

    def logged(self, key: str) -> Series:
        """A key of the log rows, at the steps whose row has it; empty if no row holds a number (the loss is kept)."""
        return self._kept.logged[key] if key in self.log_keys else Series()

    def measured(self, monitor: str, name: str) -> Series:
        """A value of the readings of a monitor; empty if no reading holds a number."""
        series = self._kept.measured.get((monitor, name))
        return series if series and series.any() else Series()

    def layered(self, monitor: str) -> Layered:
        """What the readings of a monitor say of layers."""
        return self._kept.layered.get(monitor) or Layered()

    @cached_property
    def layers(self) -> list[str]:
        """Every layer that any monitor has measured."""
        return names_in(list(self._kept.layered.values()))

    def abandoned(self, key: str, monitor: str = "") -> list[Series]:
        """The same of the attempts that the run went back from, one series per attempt."""
        found: list[Series] = []
        for row in self.history.abandoned:
            values: Mapping[str, Any] = row.get("values", {}) if monitor else row
            if key in values and row.get("monitor", "") == monitor and (monitor or is_training(row)):
                if not found or row["step"] <= found[-1].last[0]:
                    found.append(Series())
                found[-1].add(row["step"], finite(values[key]))
        return found

    @cached_property
    def log_keys(self) -> dict[str, None]:
        """The keys that have a series, in the order in which they were logged first."""
        return dict.fromkeys(key for key, series in self._kept.logged.items() if key == "loss" or series.any())

    @cached_property
    def rise(self) -> Rise | None:
        """The largest rise of the loss."""
        return largest_rise(self.logged("loss"))

    @property
    def training_steps(self) -> array[int]:
        """Steps of the logs that say something about training, in their order."""
        return self._kept.training

    @cached_property
    def monitors(self) -> dict[str, list[str]]:
        """Monitor -> names of its values that have a series, the described ones first and in the order of the run row."""
        found: dict[str, list[str]] = {monitor: [] for monitor in self._kept.layered}
        order = {key: place for place, key in enumerate(self.history.quantities)}
        for monitor, name in sorted(self._kept.measured, key=lambda pair: order.get("/".join(pair), len(order))):
            if self._kept.measured[monitor, name].any():
                found[monitor].append(name)
        return found

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and the last step of all logs and readings; ``None`` if there are none."""
        ends = [row["step"] for rows in (self.history.logs, self.history.readings) for row in (*rows[:1], *rows[-1:])]
        return (min(ends), max(ends)) if ends else None


@dataclass
class _Kept:
    """What the first rows of a history say: steps that trained, a series per key, and what was measured by layer."""

    logs: int = 0
    readings: int = 0
    training: array[int] = field(default_factory=lambda: array("q"))
    logged: dict[str, Series] = field(default_factory=dict)
    measured: dict[tuple[str, str], Series] = field(default_factory=dict)
    layered: dict[str, Layered] = field(default_factory=dict)

    def going_on(self, history: History, before: History) -> _Kept:
        """A copy of what is still true of a history that has grown; a row that was replaced is another one."""
        found = _Kept()
        if _begins_with(history.logs, before.logs):
            found.logs, found.training = self.logs, self.training[:]
            found.logged = {key: series.copy() for key, series in self.logged.items()}
        if _begins_with(history.readings, before.readings):
            found.readings = self.readings
            found.measured = {key: series.copy() for key, series in self.measured.items()}
            found.layered = {monitor: layered.copy() for monitor, layered in self.layered.items()}
        return found

    def read(self, history: History) -> None:
        """Take the rows that are new."""
        for row in history.logs[self.logs :]:
            step, training = row["step"], is_training(row)
            if training:
                self.training.append(step)
            for key, value in row.items():
                if key not in _NO_SERIES and (training or key.startswith("eval_")):
                    self.logged.setdefault(key, Series()).add(step, drawable(value))
        for row in history.readings[self.readings :]:
            self.layered.setdefault(row["monitor"], Layered()).add(row)
            for name, value in row["values"].items():
                self.measured.setdefault((row["monitor"], name), Series()).add(row["step"], drawable(value))
        self.logs, self.readings = len(history.logs), len(history.readings)


def _begins_with(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether ``others`` are the first of ``rows``: the same objects, because a row that was replaced is another one."""
    return len(others) <= len(rows) and all(map(operator.is_, rows, others))


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
