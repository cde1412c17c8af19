"""What does the paper's setting for pretrained models do to the numbers by itself? One job is one profile."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from hf_rksp import profile_model
from hf_rksp.inputs import InputOptions, ModelSource, Prepared, prepare
from hf_rksp.paper import read_paper
from hf_rksp.profile.aggregate import THIRDS
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of
from scripts.reproduce.harness.markdown import table

QUANTITIES = ("near_unit_mass", "spectral_radius", "eigenvector_condition", "nonlinearity_ratio")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Each quantity over the early, middle and late third of the depth."""
    reading = settings["readings"][job["setting"]]
    options = InputOptions(tokens=reading["tokens"], seq_len=reading["seq_len"], seed=job["seed"])
    prepared = prepare(ModelSource(**settings["models"][job["model"]]["source"], seed=job["seed"]), options)
    batch = chosen(prepared, reading)
    profile = profile_model(prepared.model, [batch], rank=reading["rank"], groups=0, progress=False)
    return {"thirds": {name: [profile.thirds[third][name] for third in THIRDS] for name in QUANTITIES}}


def chosen(prepared: Prepared, reading: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All sequences as one batch, the first ``distinct`` in place of the others."""
    count = reading["tokens"] // reading["seq_len"]
    (batch,) = prepared.batches(count)
    indices = torch.arange(count) % (reading["distinct"] or count)
    return {name: tensor[indices] for name, tensor in batch.items()}


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """A table for each model: mean over the seeds for each third; after it the paper's figures."""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row["seed"] for row in rows))
    text = [
        f"Mean of seeds {seeds}: early, middle and late third of the depth. In brackets: the largest "
        "standard deviation over the seeds of the three.\n"
    ]
    for title, model in settings["models"].items():
        lines = []
        for setting in settings["readings"]:
            runs = [row["thirds"] for row in rows if (row["model"], row["setting"]) == (title, setting)]
            if runs:
                lines.append([setting, *(cell(runs, name) for name in QUANTITIES)])
        if model["published"]:
            paper = read_paper().models[model["published"]]
            figures = [[f"{each.value:g}" for each in paper.figures if each.quantity == name] for name in QUANTITIES]
            lines.append([f"the paper, {paper.name} pretrained", *map(", ".join, figures)])
        header = ["", *(LAYER[name].title for name in QUANTITIES)]
        text += [f"## {title}", "", *table(header, lines), ""]
    return "\n".join(text)


def cell(runs: list[dict[str, list[float]]], name: str) -> str:
    """The three means, and the largest deviation over the seeds if there is more than one."""
    form = form_of(LAYER[name])
    columns = list(zip(*(run[name] for run in runs), strict=True))
    means = ", ".join(form(statistics.fmean(column)) for column in columns)
    return means + (f" ({form(max(map(statistics.stdev, columns)))})" if len(runs) > 1 else "")
