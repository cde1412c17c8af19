"""The tables of a report as plain text: which columns there are, what they are called, how each number is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_rksp.json_data import finite, section
from hf_rksp.quantities import LAYER, Quantity
from hf_rksp.report.kit.reading import layers_of, name_of
from hf_rksp.report.kit.text import DASH, anything, count, form_of, line, number, share, span

Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of layers: group, symbol, meaning, and the text for one layer."""

    group: str
    head: str
    meaning: str
    cell: Callable[[Layer], str]
    key: str = ""

    @property
    def name(self) -> str:
        """What a list calls the number."""
        return self.meaning.removesuffix(" ± standard error")


def _plain(name: str, form: Callable[[Any], str]) -> Callable[[Layer], str]:
    return lambda layer: form(layer.get(name))


def _error(name: str, form: Callable[[Any], str]) -> Callable[[Layer], str]:
    def cell(layer: Layer) -> str:
        error = finite(section(layer, "standard_errors").get(name))
        shown = form(layer.get(name))
        if shown == DASH or error is None:
            return shown
        return f"{shown} ± {_spread(error, form)}"

    return cell


def _spread(error: Any, form: Callable[[Any], str]) -> str:
    return form(error) if form is share else number(error, 2)


def _inner(outer: str, name: str, form: Callable[[Any], str]) -> Callable[[Layer], str]:
    return lambda layer: form(section(layer, outer).get(name))


def _mode(layer: Layer) -> str:
    return line(layer.get("mode") or DASH)


_ALL, _FILTERED, _SHAPE = "Masses, all modes", "Masses, reliable modes only", "Shape of the spectrum"
_FIT, _DATA = "Fit", "Data"
_BAND = {"near_unit_mass": "M~1", "expansive_mass": "M>1", "contractive_mass": "M<1", "intermediate_mass": "M_mid"}

LAYER_COLUMNS: tuple[Column, ...] = (
    Column(_ALL, "M~1", "near-unit mass ± standard error", _error("near_unit_mass", share), "near_unit_mass"),
    Column(_ALL, "M>1", "expansive mass", _plain("expansive_mass", share), "expansive_mass"),
    Column(_ALL, "M<1", "contractive mass", _plain("contractive_mass", share), "contractive_mass"),
    Column(_ALL, "M_mid", "intermediate mass", _plain("intermediate_mass", share), "intermediate_mass"),
    Column(_ALL, "of modes", "number of modes: the denominator of these shares", _plain("mass_denominator", count)),
    *(
        Column(
            _FILTERED, head, "the same, over modes that pass the ResDMD filter", _inner("filtered_masses", name, share)
        )
        for name, head in _BAND.items()
    ),
    Column(
        _FILTERED,
        "of modes",
        "number of modes that pass: the denominator of these shares",
        _inner("filtered_masses", "denominator", count),
    ),
    Column(_SHAPE, "ρ", "spectral radius ± standard error", _error("spectral_radius", number), "spectral_radius"),
    Column(
        _SHAPE,
        "κ(V)",
        "eigenvector condition",
        _plain("eigenvector_condition", number),
        "eigenvector_condition",
    ),
    Column(_SHAPE, "Henrici", "departure from normality, 0 to 1", _plain("henrici_departure", share)),
    Column(
        _SHAPE,
        "Kreiss",
        "bracket of the Kreiss constant",
        lambda layer: (
            f"{number(section(layer, 'kreiss_constant').get('lower'))} to {number(section(layer, 'kreiss_constant').get('upper'))}"
            if section(layer, "kreiss_constant")
            else DASH
        ),
        "kreiss_constant",
    ),
    Column(
        _SHAPE, "on disc", "radius of the disc of the Kreiss constant", _inner("kreiss_constant", "disc_radius", number)
    ),
    Column(
        _FIT, "η_nl", "nonlinearity ratio ± standard error", _error("nonlinearity_ratio", number), "nonlinearity_ratio"
    ),
    Column(
        _FIT,
        "reliable",
        "reliable share: modes that pass the ResDMD filter",
        _plain("reliable_fraction", share),
        "reliable_fraction",
    ),
    Column(_FIT, "update", "relative update, whitened", _plain("relative_update", number)),
    Column(_DATA, "rank", "directions kept", _plain("rank", count)),
    Column(_DATA, "width", "dimension of the stream", _plain("dim", count)),
    Column(_DATA, "mode", "full or projected", _mode),
    Column(_DATA, "tokens", "tokens counted", _plain("tokens", count)),
    Column(_DATA, "effective", "effective number of tokens", _plain("samples", count)),
    Column(_DATA, "cond(X)", "condition of the centred states", _plain("condition", number)),
    Column(_DATA, "dropped", "directions below the cutoff", _plain("dropped_directions", count)),
    Column(_DATA, "var in", "share of the input's variance in the kept directions", _plain("input_energy", share)),
    Column(_DATA, "var out", "share of the output's variance in the kept directions", _plain("output_energy", share)),
)


def groups() -> list[tuple[str, list[Column]]]:
    """The columns by group, in order."""
    found: dict[str, list[Column]] = {}
    for column in LAYER_COLUMNS:
        found.setdefault(column.group, []).append(column)
    return list(found.items())


def layer_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per layer: name, whether it is an identity block, and the cells in the order of `LAYER_COLUMNS`."""
    return [
        {
            "name": line(name_of(layer), 120),
            "identity": layer.get("uninformative") is True,
            "cells": [column.cell(layer) for column in LAYER_COLUMNS],
        }
        for layer in layers_of(data)
    ]


AGGREGATE_HEADS = ("mean", "95% interval", "std. error", "std over layers", "min", "max", "early", "middle", "late")


def aggregate_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per quantity: mean with interval and error, spread over layers, and the thirds of depth."""
    aggregates, thirds = section(data, "aggregates"), section(data, "thirds")
    names = [name for name in LAYER if name in aggregates] + [name for name in aggregates if name not in LAYER]
    rows = []
    for name in names:
        row = section(aggregates, name)
        quantity = LAYER.get(name) or Quantity(name, line(name, 60))
        form = form_of(quantity)
        cells = [form(row.get("mean")), span(row.get("interval"), form), _spread(row.get("standard_error"), form)]
        cells += [form(row.get(part)) for part in ("std", "min", "max")]
        cells += [form(section(thirds, third).get(name)) for third in ("early", "middle", "late")]
        rows.append({"name": quantity.title, "symbol": quantity.symbol, "cells": cells})
    return rows


#: Most rows that a block of the set-up shows.
_LONGEST_BLOCK = 120
_BLOCK_NAMES = {
    "spectral_config": "Bands and cutoffs",
    "thresholds": "Thresholds of the verdict",
    "versions": "Versions",
    "text": "Text",
    "machine": "Machine",
    "config": "Configuration of the model",
    "initialisation": "Initialisation",
}


def setup_blocks(data: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that the numbers depend on, as titled lists of (name, value): the model, the run, then every nested entry."""
    model, setup = dict(section(data, "model")), dict(section(data, "setup"))
    setup.pop("command", None)
    reasons: dict[str, int] = {}
    for layer in layers_of(data):
        if layer.get("rank_reason"):
            reasons[str(layer["rank_reason"])] = reasons.get(str(layer["rank_reason"]), 0) + 1
    blocks: list[dict[str, Any]] = []
    nested = [("thresholds", section(verdict, "thresholds"))]
    for title, entries in (("Model", model), ("Run", setup)):
        flat = {name: value for name, value in entries.items() if not isinstance(value, Mapping)}
        nested += [(str(name), value) for name, value in entries.items() if isinstance(value, Mapping)]
        rows = [(_label(name), anything(value)) for name, value in list(flat.items())[:_LONGEST_BLOCK]]
        if title == "Run":
            rows += [("why this rank", f"{line(why)} ({number} layers)") for why, number in list(reasons.items())[:8]]
        if rows:
            blocks.append({"title": title, "rows": rows, "long": False})
    nested.sort(key=lambda pair: pair[0] == "config")
    for name, inner in nested:
        rows = [(line(key, 80), anything(value)) for key, value in list(inner.items())[:_LONGEST_BLOCK]]
        if len(inner) > _LONGEST_BLOCK:
            rows.append((f"{len(inner) - _LONGEST_BLOCK} more entries", "in report.json"))
        if rows:
            blocks.append({"title": _BLOCK_NAMES.get(name, _label(name)), "rows": rows, "long": len(rows) > 12})
    return blocks


def _label(name: object) -> str:
    return line(name, 80).replace("_", " ")
