"""All that was measured and logged, in groups: one chart per quantity, one heat map per quantity of layers.

Nothing here knows a monitor: titles, units, limits and axes come from the quantities that the run row describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_rksp.quantities import Quantity
from hf_rksp.report.kit.text import line
from hf_rksp.report.run.curves import Curve, curve_of
from hf_rksp.report.run.heat import Heat, heats_of
from hf_rksp.report.run.numbers import Run, described, heading
from hf_rksp.report.run.series import Series

#: Charts of one group; a log can hold a number per layer.
_MOST = 24
#: Drawn with what happened.
_FIRST = ("loss", "grad_norm")
#: Titles of numbers of Trainer itself.
_TRAINER = {"learning_rate": "learning rate", "eval_loss": "evaluation loss"}
#: Ends of keys that count what was left out: a sentence names them, and a chart shows them if there are any.
LEFT_OUT = ("skipped", "dropped")


@dataclass(frozen=True)
class Group:
    """What one monitor measured, or what one part logged.

    Attributes:
        title, note: heading, and what to know.
        monitor: its name; empty for what was logged alone.
        curves: charts over the steps.
        heats: per quantity of layers a heat map of each run.
    """

    title: str
    note: str
    curves: list[Curve]
    heats: list[list[Heat]] = field(default_factory=list)
    monitor: str = ""


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The monitors in the order in which they first measured, then the parts that logged, then Trainer's own numbers."""
    monitors: dict[str, dict[str, None]] = {}
    for run in runs:
        for monitor, names in run.monitors.items():
            monitors.setdefault(monitor, {}).update(dict.fromkeys(names))
    found = [_measured(runs, monitor, list(names)) for monitor, names in monitors.items()]
    measured = {f"{monitor}/{name}" for monitor, names in monitors.items() for name in names}
    parts: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.log_keys):
        part = key.partition("/")[0] if "/" in key else ""
        if key not in measured and key not in _FIRST and _worth(runs, key):
            parts.setdefault(part, []).append(key)
    found += [_logged(runs, part, keys) for part, keys in sorted(parts.items(), key=lambda pair: not pair[0])]
    return [group for group in found if group.curves or group.heats]


def _worth(runs: Sequence[Run], key: str) -> bool:
    """Not a number of one layer, which its heat map shows, nor a count that stays 0."""
    above = described(runs, key.rpartition("/")[0])
    if above is not None and above.per_layer and described(runs, key) is None:
        return False
    return key.rpartition("/")[2] not in LEFT_OUT or any(value for run in runs for _, value in run.logged(key))


def _measured(runs: Sequence[Run], monitor: str, names: Sequence[str]) -> Group:
    curves = []
    for name in names:
        key = f"{monitor}/{name}"
        series, replaced = [], False
        for run in runs:
            own = run.measured(monitor, name)
            series.append(own or run.logged(key))
            replaced |= not own and bool(series[-1])
        note = "Where a run has no readings: as logged." if replaced else ""
        abandoned = [run.abandoned(name, monitor) for run in runs]
        curves.append(curve_of(described(runs, key) or Quantity(key, key), series, abandoned, note, dots=True))
    layered = [
        (key.removeprefix(f"{monitor}/"), quantity)
        for key, quantity in {key: q for run in reversed(runs) for key, q in run.history.quantities.items()}.items()
        if quantity.per_layer and key.startswith(f"{monitor}/")
    ]
    number = sum(len(run.history.of(monitor)) for run in runs)
    note = f"{number:,} {'reading' if number == 1 else 'readings'}, one dot each; the tables below have the numbers."
    return Group(heading(monitor), note, curves[:_MOST], heats_of(runs, monitor, layered), monitor)


def _logged(runs: Sequence[Run], part: str, keys: Sequence[str]) -> Group:
    curves = []
    order = {key: place for run in reversed(runs) for place, key in enumerate(run.history.quantities)}
    for key in sorted(keys, key=lambda key: order.get(key, len(order)))[:_MOST]:
        quantity = described(runs, key) or Quantity(key, _TRAINER.get(key, line(key, 60)))
        series: list[Series] = [run.logged(key) for run in runs]
        curves.append(curve_of(quantity, series, [run.abandoned(key) for run in runs]))
    note = "As logged."
    if len(keys) > _MOST:
        note += f" {len(keys) - _MOST} more logged numbers are in the history file alone."
    return Group(heading(part) if part else "Trainer", note, curves)
