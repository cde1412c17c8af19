"""The results as parquet files that `datasets` loads, and the cards that describe them."""

from __future__ import annotations

import io
from typing import Any

from hf_rksp.json_data import finite, section
from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import QUANTITIES
from hf_rksp.report.kit.reading import layers_of
from hf_rksp.zoo.shelf import Entry, Shelf

#: Columns of a layer besides its quantities.
_LAYER = ("index", "stack", "path", "depth", "dim", "tokens", "rank", "mode", "uninformative")


def table_files(shelf: Shelf) -> dict[str, bytes]:
    """parquet/models.parquet, parquet/layers.parquet and DATASET_CARD.md; equal results give equal bytes."""
    models, layers = [], []
    for entry in shelf.entries:
        for seed, report in entry.reports.items():
            profile = report["profile"]
            key: dict[str, Any] = {
                "id": entry.model.id,
                "family": entry.model.family,
                "source": entry.model.weights,
                "seed": seed,
                "progress": entry.model.progress,
            }
            models.append(key | _model(entry, profile, report["verdict"]))
            layers += [key | _layer(layer) for layer in layers_of(profile)]
    return {
        "parquet/models.parquet": _parquet(models),
        "parquet/layers.parquet": _parquet(layers),
        "DATASET_CARD.md": _card(shelf).encode(),
    }


def _model(entry: Entry, data: Any, verdict: Any) -> dict[str, Any]:
    means = {name: finite(section(data["aggregates"], name).get("mean")) for name in QUANTITIES}
    thirds = {
        f"{name}_{third}": finite(section(data["thirds"], third).get(name))
        for third in THIRDS
        for name in ("near_unit_mass", "spectral_radius", "eigenvector_condition", "nonlinearity_ratio")
    }
    return {
        "title": entry.model.title,
        "licence": entry.model.licence,
        "parameters": data["model"].get("parameters"),
        "layers": len(data["layers"]),
        "band": verdict["band"],
        **means,
        **thirds,
        "seconds": finite(data["cost"]["seconds"]["profile"]),
        "peak_memory_bytes": data["cost"]["peak_memory_bytes"],
        "command": data["setup"].get("command"),
        "date": data["setup"].get("date"),
        "hf_rksp": data["setup"]["versions"].get("hf_rksp"),
        "torch": data["setup"]["versions"].get("torch"),
        "transformers": data["setup"]["versions"].get("transformers"),
    }


def _layer(layer: Any) -> dict[str, Any]:
    values = {name: layer.get(name) for name in _LAYER}
    for name in QUANTITIES:
        values[name] = finite(layer.get(name))
        if name in section(layer, "standard_errors"):
            values[f"{name}_standard_error"] = finite(section(layer, "standard_errors").get(name))
    return values


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target, compression="zstd")
    return target.getvalue()


def _card(shelf: Shelf) -> str:
    """The dataset card, with what `datasets` and the Hub read on top."""
    from huggingface_hub import DatasetCard, DatasetCardData

    audited = [entry for entry in shelf.entries if entry.reports]
    families = dict.fromkeys(entry.model.family for entry in audited)
    data = DatasetCardData(
        pretty_name="RKSP model zoo: spectral profiles of residual streams",
        license="apache-2.0",
        tags=["rksp", "training-stability", "residual-koopman-spectral-profiling", "dynamic-mode-decomposition"],
        configs=[
            {"config_name": "models", "data_files": "parquet/models.parquet", "default": True},
            {"config_name": "layers", "data_files": "parquet/layers.parquet"},
        ],
    )
    body = [
        "# RKSP model zoo",
        "",
        f"Spectral profiles of {len(audited)} models ({', '.join(families)}), made by `rksp zoo run`. Configuration "
        "`models` has one row per audited model and seed, `layers` one row per residual block of these.",
        "",
        "Columns have the names of a report. Masses are shares of eigenvalues. `spectral_radius` and `eigenvector_condition` "
        "have no unit. `seconds` and `peak_memory_bytes` describe the audit on the machine that `report.json` names. "
        "`*_standard_error` is a jackknife over groups of sequences. An empty cell means that the value is not defined for this "
        "model.",
        "",
        "`source` says whether the weights are random (`initialised`), trained for the zoo (`trained`) or `pretrained`. "
        "`progress` is the fraction of the training that a model trained for the zoo has completed. The near-unit mass is not "
        "calibrated and does not rank models.",
        "",
        "```python",
        "import datasets",
        "",
        'datasets.load_dataset("parquet", data_files="parquet/layers.parquet", split="train")',
        "```",
        "",
    ]
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body)))


def model_card_metadata(entry: Entry) -> str:
    """``model-index`` of a model card (YAML): the audit's numbers as the Hub shows evaluation results."""
    from huggingface_hub import EvalResult, ModelCardData

    data = entry.profile
    assert data is not None
    text = section(data["setup"], "text") or section(data["setup"], "images")
    results = [
        EvalResult(
            task_type="other",
            task_name="residual Koopman spectral profile",
            dataset_type="other",
            dataset_name=str(text.get("source") or "unknown"),
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
        )
        for name in QUANTITIES
        if (value := finite(section(data["aggregates"], name).get("mean"))) is not None
    ]
    card = ModelCardData(model_name=entry.model.title, eval_results=results, tags=["rksp", "training-stability"])
    return str(card.to_yaml()) + "\n"
