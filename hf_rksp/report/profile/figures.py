"""All figures of a report, from its dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.report.kit.plane import BUDGET, eigenvalue_plane
from hf_rksp.report.kit.reading import layers_of, margins, stacks_of, threshold
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.kit.text import share
from hf_rksp.report.profile import depth
from hf_rksp.report.profile.depth import Depth


def planes(data: Mapping[str, Any]) -> list[Figure]:
    """The complex plane, one figure per stack."""
    layers = layers_of(data)
    lower, upper, contractive, _ = margins(data)
    stacks = stacks_of(layers) or {"": []}
    one = len(stacks) == 1
    return [
        eigenvalue_plane(
            [(position, layers[position]) for position in members],
            "eigenvalues" if one else f"eigenvalues-{place}",
            "" if one else stack,
            (lower, upper, contractive),
            BUDGET * len(members) // max(1, len(layers)),
        )
        for place, (stack, members) in enumerate(stacks.items(), 1)
    ]


def depth_figures(data: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[Figure]:
    """Near-unit mass, masses, spectral radius, eigenvector condition and nonlinearity ratio over depth."""
    layers = layers_of(data)
    lower, upper, contractive, _ = margins(data)
    safe, high = threshold(verdict, "safe_near_unit_mass"), threshold(verdict, "high_near_unit_mass")
    large = threshold(verdict, "large_eigenvector_condition")
    bands = [(limit, f"{name} {limit:g}") for limit, name in ((safe, "low <"), (high, "high >")) if limit is not None]
    return [
        depth.series(
            layers,
            Depth(
                "near_unit_mass",
                "Near-unit mass by depth",
                "share of modes in the near-unit band",
                "The published thresholds are for the mean over layers. Bars: 95% jackknife interval over groups of sequences.",
                limits=bands,
                top=1.0,
                width=depth.WIDE,
                smallest=0.0,
                form=share,
            ),
        ),
        depth.masses(layers, (lower, upper, contractive)),
        depth.series(
            layers,
            Depth(
                "spectral_radius",
                "Spectral radius by depth",
                "ρ, largest |λ|",
                "Above 1 at least one direction grows through the block.",
                limits=[(1.0, "ρ = 1")],
                smallest=0.0,
            ),
        ),
        depth.series(
            layers,
            Depth(
                "eigenvector_condition",
                "Eigenvector condition by depth",
                "κ(V), powers of ten",
                "Far above 1 the eigenvalues understate transient growth.",
                limits=[] if large is None else [(large, "large")],
                log=True,
                smallest=1.0,
            ),
        ),
        depth.series(
            layers,
            Depth(
                "nonlinearity_ratio",
                "Nonlinearity ratio by depth",
                "η_nl, error of the fit / size of the update",
                "Near 0 the block acts linearly on these tokens; near 1 the spectrum says little about it.",
                smallest=0.0,
            ),
        ),
    ]
