"""Every number that is measured: what it is called, how it is written, what limits it has. Tables, charts and logs read it here.

A quantity of a layer is named by its field in `hf_rksp.profile.LayerProfile`. A quantity of a run is named by the monitor that
measures it and its own name, such as ``spectrum/near_unit_mass/max``: its description travels in the history of the run, so
that a page can draw a monitor that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hf_rksp.json_data import finite

#: How a number is written: a share from 0 to 1, a number of any size, a whole number.
Unit = Literal["share", "number", "count"]
_UNITS: tuple[Unit, ...] = ("share", "number", "count")


@dataclass(frozen=True)
class Quantity:
    """One measured number.

    Attributes:
        key: its name in data.
        title: its name for readers, in lower case.
        symbol: its symbol; may be empty.
        unit: how it is written.
        note: one sentence on how to read it; may be empty.
        limit: a value that readers compare it with, and ``limit_title`` in words.
        logarithmic: whether charts show powers of ten.
        per_layer: whether the rows of layers in a reading have it under this key, so that it is drawn by layer and step.
        has_error: whether the jackknife gives a standard error. Not for a condition number, whose leave-one-out values spread
            over powers of ten, and not for a share of passed modes, whose values jump by whole modes.
    """

    key: str
    title: str
    symbol: str = ""
    unit: Unit = "number"
    note: str = ""
    limit: float | None = None
    limit_title: str = ""
    logarithmic: bool = False
    per_layer: bool = False
    has_error: bool = True

    def description(self) -> dict[str, Any]:
        """Plain JSON types for the run row of a history; fields that hold their default are left out."""
        fields = {name: getattr(self, name) for name in ("title", "symbol", "unit", "note", "limit", "limit_title")}
        fields |= {name: getattr(self, name) for name in ("logarithmic", "per_layer")}
        return {name: value for name, value in fields.items() if name in ("title", "unit") or value}

    @classmethod
    def described(cls, key: str, description: Mapping[str, Any]) -> Quantity:
        """The quantity that `description` described; what is missing or of another type gets its default."""

        def text(name: str) -> str:
            value = description.get(name)
            return value if isinstance(value, str) else ""

        unit, limit = description.get("unit"), description.get("limit")
        number = limit if isinstance(limit, (int, float)) and not isinstance(limit, bool) else None
        return cls(
            key,
            text("title") or key,
            text("symbol"),
            unit if unit in _UNITS else "number",
            text("note"),
            None if number is None else float(number),
            text("limit_title"),
            description.get("logarithmic") is True,
            description.get("per_layer") is True,
        )


#: The quantities of a layer, in the order of tables (RKSP section 3.2.2).
LAYER: dict[str, Quantity] = {
    quantity.key: quantity
    for quantity in (
        Quantity("near_unit_mass", "near-unit mass", "M~1", "share"),
        Quantity("expansive_mass", "expansive mass", "M>1", "share"),
        Quantity("contractive_mass", "contractive mass", "M<1", "share"),
        Quantity("intermediate_mass", "intermediate mass", "M_mid", "share"),
        Quantity("spectral_radius", "spectral radius", "ρ", limit=1.0, limit_title="ρ = 1"),
        Quantity("eigenvector_condition", "eigenvector condition", "κ(V)", logarithmic=True, has_error=False),
        Quantity("kreiss_constant", "Kreiss constant, lower bound", "K", has_error=False),
        Quantity("nonlinearity_ratio", "nonlinearity ratio", "η_nl"),
        Quantity("reliable_fraction", "reliable share of modes", "", "share", has_error=False),
        Quantity("henrici_departure", "departure from normality (Henrici)", "", "share"),
        Quantity("relative_update", "relative update"),
    )
}
#: Those that are one number per layer; the Kreiss constant is a bracket.
QUANTITIES = tuple(key for key in LAYER if key != "kreiss_constant")
#: Those without a standard error.
UNESTIMABLE = tuple(key for key in QUANTITIES if not LAYER[key].has_error)
#: Those whose intervals stay within 0 and 1.
SHARES = tuple(key for key in QUANTITIES if LAYER[key].unit == "share")
#: The masses by falling modulus.
MASSES = ("expansive_mass", "near_unit_mass", "intermediate_mass", "contractive_mass")
#: What is compared over the seeds of a model, in this order.
SEEDS = (
    "near_unit_mass",
    "expansive_mass",
    "contractive_mass",
    "spectral_radius",
    "eigenvector_condition",
    "nonlinearity_ratio",
    "reliable_fraction",
)

#: What is followed of the spectrum over a run: quantity of the layers, statistic over them.
_OVER_LAYERS = (
    ("near_unit_mass", "mean"),
    ("near_unit_mass", "max"),
    ("expansive_mass", "mean"),
    ("nonlinearity_ratio", "mean"),
    ("spectral_radius", "max"),
    ("eigenvector_condition", "max"),
)
_STATISTICS = {"mean": "mean over layers", "max": "largest layer"}
#: What a reading of the spectrum holds: numbers of the run, then numbers per layer.
SPECTRUM: tuple[Quantity, ...] = (
    *(
        replace(LAYER[name], key=f"{name}/{statistic}", title=f"{LAYER[name].title}, {_STATISTICS[statistic]}")
        for name, statistic in _OVER_LAYERS
    ),
    *(replace(LAYER[name], per_layer=True) for name in ("near_unit_mass", "spectral_radius")),
)


#: What a reading of Spectral Alignment holds: numbers of the run over all watched maps, then numbers per map.
ALIGNMENT: tuple[Quantity, ...] = (
    Quantity(
        "majority_share/max",
        "share of tokens with the same sign, largest map",
        unit="share",
        note="About one half in a healthy layer; near 1 if all inputs lie on one side of the principal direction.",
        limit=1.0,
        limit_title="all tokens alike",
    ),
    Quantity("majority_share/mean", "share of tokens with the same sign, mean over maps", unit="share"),
    Quantity("sign_entropy/min", "entropy of the signs in bits, smallest map"),
    Quantity("mean_absolute/max", "mean absolute alignment, largest map", unit="share"),
    Quantity("spectral_norm/max", "spectral norm, largest map", "σ", logarithmic=True),
    Quantity(
        "growth/max",
        "growth of the spectral norm since the last reading, largest map",
        note="Along the singular vectors of the last reading. Theorem 1 of the paper expects it above zero in every step.",
    ),
    Quantity("flagged", "maps far from their own past", unit="count"),
    Quantity("majority_share", "share of tokens with the same sign", unit="share", per_layer=True),
    Quantity("growth", "growth of the spectral norm", per_layer=True),
)


#: What a reading of queries, keys and attention logits holds.
ATTENTION: tuple[Quantity, ...] = (
    Quantity(
        "effective_rank/min",
        "effective rank of the change of queries times keys, smallest head",
        note="Since the last reading, to first order; at most twice the size of a head.",
    ),
    Quantity("effective_rank/mean", "effective rank of the change of queries times keys, mean over heads"),
    Quantity("update_norm", "norm of the change of queries and keys since the last reading", logarithmic=True),
    Quantity(
        "largest_logit",
        "largest attention logit",
        note="Before the softmax, in the training batch. Runs that pass 1e4 diverge (Wortsman et al. 2023).",
        limit=1e4,
        limit_title="1e4",
    ),
    Quantity("effective_rank", "effective rank of the change of queries times keys, smallest head", per_layer=True),
)


#: What a reading of the curvature holds.
CURVATURE: tuple[Quantity, ...] = (
    Quantity(
        "lambda_max",
        "largest eigenvalue of the preconditioned Hessian",
        "λ",
        note="In one per learning rate. A lower bound: what the products of the reading have found.",
        logarithmic=True,
    ),
    Quantity(
        "lambda_direction",
        "curvature along the update",
        note="In one per learning rate. Along the gradient over the preconditioner, of the same batch.",
    ),
    Quantity(
        "ratio_step",
        "learning rate × largest eigenvalue / 2",
        note="Above 1 one step without momentum overshoots along that eigenvector.",
        limit=1.0,
        limit_title="1",
        logarithmic=True,
    ),
    Quantity(
        "ratio_momentum",
        "learning rate × largest eigenvalue / limit with momentum",
        note="The limit is that of the optimizer on a quadratic: 38 for Adam with beta1 = 0.9.",
        limit=1.0,
        limit_title="1",
        logarithmic=True,
    ),
    Quantity(
        "ratio_direction",
        "learning rate × curvature along the update / 2",
        note="Above 1 one step without momentum overshoots along the update.",
        limit=1.0,
        limit_title="1",
    ),
    Quantity("residual", "residual of the eigenvalue, relative to it"),
    Quantity("left_out", "entries left out because their second moment is near zero", unit="share"),
)


def over_layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of the run in `SPECTRUM`, from rows of layers; what is not finite in a layer is left out."""
    values = {}
    for name, statistic in _OVER_LAYERS:
        known = [value for layer in layers if (value := finite(layer.get(name))) is not None]
        if known:
            values[f"{name}/{statistic}"] = max(known) if statistic == "max" else sum(known) / len(known)
    return values
