"""How far do the numbers depend on the amount of text? One job is one profile of a model with random weights."""

from __future__ import annotations

import statistics
from typing import Any

from hf_rksp import profile_model
from hf_rksp.inputs import InputOptions, ModelSource, prepare
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of
from scripts.reproduce.harness.markdown import table

QUANTITIES = ("near_unit_mass", "spectral_radius", "nonlinearity_ratio")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One profile: means over the layers."""
    source = settings["models"][job["table"]][job["model"]]
    options = InputOptions(tokens=job["tokens"], seed=job["seed"])
    prepared = prepare(ModelSource(**source, seed=job["seed"]), options)
    profile = profile_model(prepared.model, prepared.batches(8), groups=0, source="initialised", progress=False)
    return {
        "distinct_tokens": prepared.setup["text"]["distinct_tokens"],
        "rank": max(layer.rank for layer in profile.layers),
    } | {quantity: profile.aggregates[quantity]["mean"] for quantity in QUANTITIES}


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Mean over the seeds with the standard deviation, a line for each number of tokens."""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row["seed"] for row in rows))
    text = [f"Mean over layers and seeds {seeds} ± standard deviation over the seeds.\n"]
    counts = dict.fromkeys(row["tokens"] for row in rows)
    for name, models in settings["models"].items():
        for quantity in QUANTITIES:
            lines = [
                [f"{tokens:,}", *(cell(rows, quantity, name, model, tokens) for model in models)] for tokens in counts
            ]
            text += [f"## {name}: {LAYER[quantity].title}", "", *table(["tokens", *models], lines, "---:"), ""]
    return "\n".join(text)


def cell(rows: list[dict[str, Any]], quantity: str, name: str, model: str, tokens: int) -> str:
    """One quantity over the seeds; for LLaMA also the tokens a direction, as its width grows with its size."""
    runs = [row for row in rows if (row["table"], row["model"], row["tokens"]) == (name, model, tokens)]
    if not runs:
        return "–"
    form = form_of(LAYER[quantity])
    values = [row[quantity] for row in runs]
    spread = f" ± {form(statistics.stdev(values))}" if len(values) > 1 else ""
    each = f" ({tokens / runs[0]['rank']:.0f} a direction)" if name.startswith("LLaMA") else ""
    return form(statistics.fmean(values)) + spread + each
