"""Histories as tables: side by side, set-up, what differs, and the numbers of every reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rksp.history.read import History, layers_at
from hf_rksp.history.schema import Row
from hf_rksp.json_data import finite, section
from hf_rksp.quantities import LAYER, Quantity
from hf_rksp.report.kit.text import DASH, anything, count, form_of, line, number, seconds
from hf_rksp.report.profile.tables import setup_blocks
from hf_rksp.report.run.numbers import Run, described, heading

_TOKENS = {"batch": "training batch", "probe": "fixed probe"}
#: Rows that the tables of layers have together; beyond it the page would be mostly table.
_MOST_ROWS = 2_000
#: Readings that the table of a monitor has.
_MOST_READINGS = 500
#: Columns of values that a table has at most.
_MOST_COLUMNS = 24
#: Entries of the row of a layer that say which layer it is.
_NO_NUMBERS = ("index", "stack", "path")


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The same numbers of every run: label, and one cell per run."""
    columns = [_column(run) for run in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [(label, [column.get(label, DASH) for column in columns]) for label in labels]
    return [(label, cells) for label, cells in rows if set(cells) != {DASH}]


def _column(run: Run) -> dict[str, str]:
    steps = run.training_steps
    loss, readings = run.logged("loss"), run.history.readings
    known, lowest = loss.known(), loss.lowest()
    gradient, lost, rise = run.logged("grad_norm").highest(), loss.gaps(), run.rise

    def at(pair: tuple[int, float | None] | None) -> str:
        return f"{number(pair[1])} at {count(pair[0])}" if pair else DASH

    rows = {
        "Logged steps": f"{count(len(steps))}, {count(steps[0])} to {count(steps[-1])}" if steps else DASH,
        "First loss, at step": at(next(iter(known), None)),
        "Last finite loss, at step": at(known.last if known else None),
        "Lowest loss, at step": at((lowest.where, lowest.value) if lowest else None),
        "Largest rise of the loss": f"{number(rise.low)} → {number(rise.high)} at {count(rise.high_step)}"
        if rise
        else DASH,
        "Loss not finite": (f"first at {count(lost[0][0])}" if lost else "never") if loss else DASH,
        "Largest gradient norm, at step": at((gradient.where, gradient.value) if gradient else None),
        "Events": count(len(run.events)) if run.events else DASH,
        "Readings": f"{len(readings)}, {count(readings[0]['step'])} to {count(readings[-1]['step'])}"
        if readings
        else "0",
        "Tokens per reading": tokens(run.history),
    }
    for monitor, names in run.monitors.items():
        for name in names[:_MOST_COLUMNS]:
            quantity = described([run], f"{monitor}/{name}") or Quantity(name, name)
            values = run.measured(monitor, name).known().values
            ends = (*values[:1], *values[1:][-1:])
            rows[f"{heading(monitor)}: {quantity.title}"] = " → ".join(map(form_of(quantity), ends))
    return rows


def tokens(history: History) -> str:
    """How many tokens a reading of eigenvalues saw, and which: the training batch or a fixed probe."""
    kinds = dict.fromkeys(_TOKENS.get(str(row.get("data")), "not stated") for row in history.spectra)
    sizes = sorted({value for row in history.spectra if (value := finite(row.get("tokens"))) is not None})
    size = " to ".join(dict.fromkeys(map(count, (sizes[0], sizes[-1])))) if sizes else DASH
    return f"{size}, {' and '.join(kinds)}" if kinds else DASH


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What the runs do not share: name of the setting, and its value in each run."""
    flat = [_flat({name: section(run.history.run, name) for name in ("model", "setup", "versions")}) for run in runs]
    names = sorted({name for one in flat for name in one} - {"setup.name"})
    rows = [(name, [one.get(name, DASH) for one in flat]) for name in names]
    return [(line(name, 120), cells) for name, cells in rows if len(set(cells)) > 1]


def _flat(data: Mapping[str, Any], stem: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{stem}{name}.")
        else:
            found[f"{stem}{name}"] = anything(value)
    return found


def conditions(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each run the blocks of its set-up, as the audit report shows them."""
    found = []
    for run in runs:
        history = run.history
        setup = {name: value for name, value in section(history.run, "setup").items() if name != "name"}
        setup |= {"versions": section(history.run, "versions")}
        if history.readings:
            times = [value for row in history.readings if (value := finite(row.get("seconds"))) is not None]
            spent = {"time of all readings": seconds(sum(times))} if times else {}
            setup["each reading"] = {"tokens": tokens(history)} | spent
        found.append((run.name, setup_blocks({"model": section(history.run, "model"), "setup": setup}, {})))
    return found


def reading_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run and monitor one row per reading and, if they are not too many, one row per layer."""
    rows = sum(len(row["layers"]) for run in runs for row in run.history.readings)
    return [_table(run, monitor, rows <= _MOST_ROWS) for run in runs for monitor in run.monitors]


def _table(run: Run, monitor: str, by_layer: bool) -> dict[str, Any]:
    """Of very many readings the first and the last ones."""
    readings, names = run.history.of(monitor), run.monitors[monitor][:_MOST_COLUMNS]
    kept = (
        readings
        if len(readings) <= _MOST_READINGS
        else readings[: _MOST_READINGS // 2] + readings[-_MOST_READINGS // 2 :]
    )
    quantities = [described([run], f"{monitor}/{name}") or Quantity(name, name) for name in names]
    layers = list(
        dict.fromkeys(key for row in readings for layer in row["layers"] for key in layer if key not in _NO_NUMBERS)
        if by_layer
        else ()
    )
    columns = [(key, described([run], f"{monitor}/{key}") or LAYER.get(key) or Quantity(key, key)) for key in layers]
    columns = [(key, quantity) for key, quantity in columns if _is_number(readings, key)][:_MOST_COLUMNS]
    return {
        "name": f"{run.name}: {heading(monitor)}",
        "heads": ["step", "epoch", "tokens", "of", "layers", *(quantity.title for quantity in quantities)],
        "number": len(readings),
        "left_out": len(readings) - len(kept),
        "readings": [_reading(row, names, quantities) for row in kept],
        "folded": not by_layer and any(row["layers"] for row in readings),
        "layer_heads": [(quantity.symbol or quantity.title, quantity.title) for _, quantity in columns],
        "layers": [
            (count(row["step"]), line(name, 60), [form_of(quantity)(layer.get(key)) for key, quantity in columns])
            for row in (readings if by_layer else ())
            for name, layer in layers_at(row).items()
        ],
    }


def _is_number(readings: Sequence[Row], key: str) -> bool:
    return any(finite(layer.get(key)) is not None for row in readings for layer in row["layers"])


def _reading(row: Row, names: Sequence[str], quantities: Sequence[Quantity]) -> list[str]:
    values = row["values"]
    return [
        count(row["step"]),
        number(row.get("epoch")),
        count(row.get("tokens")),
        _TOKENS.get(str(row.get("data")), DASH),
        count(len(row["layers"])) if row["layers"] else DASH,
        *(form_of(quantity)(values.get(name)) for name, quantity in zip(names, quantities, strict=True)),
    ]
