"""What the report leads with: the few numbers that sum a profile up, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.json_data import finite, section
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.reading import layers_of, name_of
from hf_rksp.report.kit.text import DASH, form_of, line, number, share, span

#: Label, value, and where or how sure.
Key = tuple[str, str, str]


def key_numbers(profile: Mapping[str, Any]) -> list[Key]:
    """Near-unit mass, spectral radius, eigenvector condition, nonlinearity ratio, reliable share."""
    aggregates, thirds = section(profile, "aggregates"), section(profile, "thirds")
    mass = section(aggregates, "near_unit_mass")
    interval = span(mass.get("interval"), share)
    ends = [number(section(thirds, third).get("nonlinearity_ratio")) for third in ("early", "late")]
    found = [
        ("near-unit mass, mean", share(mass.get("mean")), f"95% interval {interval}" if interval != DASH else ""),
        ("expansive mass, mean", share(section(aggregates, "expansive_mass").get("mean")), ""),
        _largest(profile, "spectral_radius"),
        _largest(profile, "eigenvector_condition"),
        (
            "nonlinearity ratio, mean",
            number(section(aggregates, "nonlinearity_ratio").get("mean")),
            f"early third {ends[0]}, late third {ends[1]}" if DASH not in ends else "",
        ),
        ("reliable share of modes", share(section(aggregates, "reliable_fraction").get("mean")), ""),
    ]
    return [entry for entry in found if entry[1] != DASH]


def _largest(profile: Mapping[str, Any], key: str) -> Key:
    layers = [layer for layer in layers_of(profile) if layer.get("uninformative") is not True]
    known = [(value, name_of(layer)) for layer in layers if (value := finite(layer.get(key))) is not None]
    if not known:
        return LAYER[key].title, DASH, ""
    value, name = max(known, key=lambda pair: pair[0])
    return f"{LAYER[key].title}, largest", form_of(LAYER[key])(value), f"in {line(name, 40)}"


def reading(bounds: tuple[float, float, float, float]) -> list[str]:
    """Five sentences on how to read the eigenvalues and these numbers.

    Args:
        bounds: as `hf_rksp.report.kit.reading.margins` gives them.
    """
    lower, upper, _, _ = bounds
    return [
        "Each residual block is fitted with a linear map from the residual stream before it to the stream after it; the dots "
        "are the eigenvalues of these maps, coloured by depth.",
        f"The near-unit mass is the share of eigenvalues in the shaded band, |λ| from {lower:g} to {upper:g}: such a direction "
        "keeps its size through the block, while a smaller |λ| shrinks it and a larger |λ| makes it grow.",
        "The spectral radius is the largest |λ|: above 1, at least one direction grows through that block.",
        "An eigenvector condition far above 1 means that the block can amplify a perturbation more than its eigenvalues suggest.",
        "A nonlinearity ratio near 0 means that the linear map describes the block well; near 1 the eigenvalues say little "
        "about the block.",
    ]
