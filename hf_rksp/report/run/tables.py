"""Histories as tables: side by side, set-up, what differs, and the numbers of every profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rksp.history.read import History, Row, is_training, layers_at
from hf_rksp.json_data import finite, section
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import DASH, anything, count, form_of, line, number, seconds, share
from hf_rksp.report.profile.tables import setup_blocks
from hf_rksp.report.run.numbers import gaps, largest, logged, mean, peak, top

_TOKENS = {"batch": "training batch", "probe": "fixed probe"}
#: Rows that the tables of layers have together; beyond it the page would be mostly table.
_MOST_ROWS = 2_000
_COLUMNS = (
    "near_unit_mass",
    "expansive_mass",
    "intermediate_mass",
    "contractive_mass",
    "spectral_radius",
    "eigenvector_condition",
    "nonlinearity_ratio",
    "henrici_departure",
    "reliable_fraction",
)
PROFILE_HEADS = ("step", "epoch", "tokens", "of", "layers", "mean M~1", "largest M~1", "largest ρ", "in layer")


def side_by_side(histories: Sequence[History]) -> list[tuple[str, list[str]]]:
    """The same numbers of every run: label, and one cell a run."""
    columns = [_column(history) for history in histories]
    rows = [(label, [column[label] for column in columns]) for label in columns[0]]
    return [(label, cells) for label, cells in rows if set(cells) != {DASH}]


def _column(history: History) -> dict[str, str]:
    steps = [row["step"] for row in history.logs if is_training(row)]
    loss, profiles = logged(history, "loss"), history.spectra
    known = [(step, value) for step, value in loss if value is not None]
    lowest = min(known, key=lambda pair: pair[1]) if known else None
    gradient, lost = peak(logged(history, "grad_norm")), gaps(loss)

    def at(pair: tuple[int, float] | None) -> str:
        return f"{number(pair[1])} at {count(pair[0])}" if pair else DASH

    def moved(form: Callable[[Row], str]) -> str:
        return " → ".join(form(profile) for profile in (*profiles[:1], *profiles[1:][-1:])) or DASH

    return {
        "Logged steps": f"{count(len(steps))}, {count(steps[0])} to {count(steps[-1])}" if steps else DASH,
        "First loss, at step": at(known[0] if known else None),
        "Last finite loss, at step": at(known[-1] if known else None),
        "Lowest loss, at step": at(lowest),
        "Loss not finite": (f"first at {count(lost[0][0])}" if lost else "never") if loss else DASH,
        "Largest gradient norm, at step": at((gradient.where, gradient.value) if gradient else None),
        "Profiles": f"{len(profiles)}, {count(profiles[0]['step'])} to {count(profiles[-1]['step'])}"
        if profiles
        else "0",
        "Tokens a profile": tokens(history),
        "Mean near-unit mass": moved(lambda profile: share(mean(profile, "near_unit_mass"))),
        "Largest near-unit mass of a layer": moved(lambda profile: share(top(profile, "near_unit_mass"))),
        "Largest spectral radius": moved(radius),
    }


def radius(profile: Row) -> str:
    """The largest spectral radius of a profile."""
    return number(top(profile, "spectral_radius"))


def tokens(history: History) -> str:
    """How many tokens a profile saw, and which: the training batch or a fixed probe."""
    kinds = dict.fromkeys(_TOKENS.get(str(row.get("data")), "not stated") for row in history.spectra)
    sizes = sorted({value for row in history.spectra if (value := finite(row.get("tokens"))) is not None})
    size = " to ".join(dict.fromkeys(map(count, (sizes[0], sizes[-1])))) if sizes else DASH
    return f"{size}, {' and '.join(kinds)}" if kinds else DASH


def differences(histories: Sequence[History]) -> list[tuple[str, list[str]]]:
    """What the runs do not share: name of the setting, and its value in each run."""
    flat = [
        _flat({name: section(history.run, name) for name in ("model", "setup", "versions")}) for history in histories
    ]
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


def conditions(histories: Sequence[History]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each run the blocks of its set-up, as the audit report shows them."""
    found = []
    for history in histories:
        setup = {name: value for name, value in section(history.run, "setup").items() if name != "name"}
        times = [value for row in history.spectra if (value := finite(row.get("seconds"))) is not None]
        made = {"tokens": tokens(history)} | ({"time of all profiles": seconds(sum(times))} if times else {})
        if "kss" in setup and setup["kss"] is None:
            setup["kss"] = "off"
        setup |= {"versions": section(history.run, "versions"), "each profile": made}
        found.append(
            (line(history.name, 60), setup_blocks({"model": section(history.run, "model"), "setup": setup}, {}))
        )
    return found


def profile_tables(histories: Sequence[History]) -> list[dict[str, Any]]:
    """For each run with profiles one row a profile and, where they are not too many, one row a layer."""
    layers = [_layer_rows(history) for history in histories]
    small = sum(map(len, layers)) <= _MOST_ROWS
    return [
        {"name": line(history.name, 60), "profiles": _profile_rows(history), "layers": rows if small else []}
        for history, rows in zip(histories, layers, strict=True)
        if history.spectra
    ]


def _profile_rows(history: History) -> list[list[str]]:
    rows = []
    for profile in history.spectra:
        found = largest(profile, "spectral_radius")
        rows.append(
            [
                count(profile["step"]),
                number(profile.get("epoch")),
                count(profile.get("tokens")),
                _TOKENS.get(str(profile.get("data")), DASH),
                count(len(layers_at(profile))),
                share(mean(profile, "near_unit_mass")),
                share(top(profile, "near_unit_mass")),
                radius(profile),
                line(found.where, 60) if found else DASH,
            ]
        )
    return rows


def layer_heads() -> list[tuple[str, str]]:
    """Heads of the table of layers: symbol or short name, and meaning."""
    return [(quantity.symbol or quantity.title, quantity.title) for quantity in map(LAYER.__getitem__, _COLUMNS)]


def _layer_rows(history: History) -> list[tuple[str, str, list[str]]]:
    return [
        (count(profile["step"]), line(name, 60), [form_of(LAYER[key])(layer.get(key)) for key in _COLUMNS])
        for profile in history.spectra
        for name, layer in layers_at(profile).items()
    ]
