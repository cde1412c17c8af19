"""Layers -> aggregates over depth. Only informative layers count: identity-initialised ones say nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hf_rksp.profile.layer import LayerProfile, interval
from hf_rksp.quantities import QUANTITIES
from hf_rksp.spectral import standard_error

THIRDS = ("early", "middle", "late")


def aggregate(layers: Sequence[LayerProfile]) -> dict[str, dict[str, Any]]:
    """Quantity -> mean, max, min, std (population) over the informative layers, and the error of the mean.

    The standard error of the mean comes from the leave-one-out means, because layers see the same sequences and are
    not independent. ``kreiss_constant`` is aggregated by its lower bound and has none.
    """
    informative = [layer for layer in layers if not layer.uninformative]
    table = {name: _summary(getattr(layer, name) for layer in informative) for name in QUANTITIES}
    for name, row in table.items():
        replicates = [layer.replicates.get(name, []) for layer in informative]
        counts = {len(values) for values in replicates}
        if len(counts) == 1 and counts != {0}:
            means = [math.fsum(values) / len(values) for values in zip(*replicates, strict=True)]
            # What a layer's error has beyond its jackknife (modes at a band's edge) is independent between layers.
            own = math.fsum(
                layer.standard_errors[name] ** 2 - standard_error(layer.replicates[name]) ** 2 for layer in informative
            )
            row["standard_error"] = math.hypot(standard_error(means), math.sqrt(max(own, 0.0)) / len(informative))
            row["interval"] = interval(name, row["mean"], row["standard_error"], len(means))
        else:
            row["standard_error"], row["interval"] = math.nan, None
    table["kreiss_constant"] = _summary(layer.kreiss_constant.lower for layer in informative)
    return table


def by_thirds(layers: Sequence[LayerProfile]) -> dict[str, dict[str, float]]:
    """Early, middle and late third of each stack -> mean of each quantity; a third without layers is left out."""
    sizes = {layer.stack: sum(other.stack == layer.stack for other in layers) for layer in layers}
    parts: dict[str, list[LayerProfile]] = {name: [] for name in THIRDS}
    places: Counter[str] = Counter()
    for layer in layers:
        place = places[layer.stack]
        places[layer.stack] += 1
        if not layer.uninformative:
            parts[THIRDS[3 * place // sizes[layer.stack]]].append(layer)
    return {
        third: {name: _summary(getattr(layer, name) for layer in members)["mean"] for name in QUANTITIES}
        for third, members in parts.items()
        if members
    }


def _summary(values: Iterable[float]) -> dict[str, Any]:
    """Mean, max, min, std of the values that are not NaN; NaN where there are none."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return dict.fromkeys(("mean", "max", "min", "std"), math.nan)
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) if math.isfinite(mean) else math.nan
    return {"mean": mean, "max": max(values), "min": min(values), "std": spread}
