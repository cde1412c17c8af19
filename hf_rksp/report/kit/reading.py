"""Safe access to a report's dict: whatever is missing, null or of another type reads as nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rksp.json_data import finite, items, section


def layers_of(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers, in order of depth."""
    return [layer for layer in items(data, "layers") if isinstance(layer, Mapping)]


def stacks_of(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Stack -> positions of its layers in the report, in order of first appearance."""
    stacks: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        stacks.setdefault(str(layer.get("stack", "")), []).append(position)
    return stacks


def name_of(layer: Mapping[str, Any]) -> str:
    """What a layer is called: its path, else its number."""
    return str(layer.get("path") or f"layer {layer.get('index', '?')}")


def interval_of(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """The 95% interval of a quantity in a layer, if both ends are numbers."""
    pair = items(section(row, "intervals"), name)
    if len(pair) != 2:
        return None
    low, high = map(finite, pair)
    return None if low is None or high is None else (low, high)


def margins(data: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Lower and upper end of the near-unit band, end of the contractive one, residual tolerance."""
    config = section(section(data, "setup"), "spectral_config")

    def margin(name: str, default: float) -> float:
        value = finite(config.get(name))
        return default if value is None or value < 0 else value

    return (
        max(0.0, 1 - margin("near_unit_margin", 0.10)),
        1 + margin("expansive_margin", 0.05),
        max(0.0, 1 - margin("contractive_margin", 0.20)),
        margin("residual_tolerance", 0.10),
    )


def threshold(verdict: Mapping[str, Any], name: str) -> float | None:
    """A threshold of the verdict, if it was recorded."""
    return finite(section(verdict, "thresholds").get(name))
