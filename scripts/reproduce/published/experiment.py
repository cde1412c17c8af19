"""Runs that others have published: what our forecast says of each, beside what became of it. One job measures one network."""

from __future__ import annotations

import functools
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor

from hf_rksp.forecast import forecast
from hf_rksp.inputs import train_byte_level_bpe
from hf_rksp.risk.calibrated import SAFE, shipped
from hf_rksp.risk.plan import Plan
from scripts.reproduce import data
from scripts.reproduce.harness.markdown import table

from .networks import INITIALISATIONS, make

#: What a plan of config.yaml may leave out.
_PLAN = {"dtype": "float32", "warmup": 0}


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there; every network and source of a run is in the settings."""
    data.wikitext_file("validation")
    for run_ in settings["runs"]:
        for field, known in (("network", settings["networks"]), ("source", settings["sources"])):
            if run_[field] not in known:
                raise ValueError(f"run {run_['id']}: {field} {run_[field]!r} is not in settings.{field}s")
        plan_of(run_, settings)
    for job in jobs:
        if settings["networks"][job["network"]]["init"] not in INITIALISATIONS:
            raise ValueError(f"network {job['network']!r}: init is none of {', '.join(INITIALISATIONS)}")


def plan_of(run_: dict[str, Any], settings: dict[str, Any]) -> Plan:
    """How a published run was planned."""
    of = _PLAN | settings["sources"][run_["source"]] | run_
    return Plan(
        beta2=of["beta2"], weight_decay=of["decay"], warmup=of["warmup"], schedule=of["schedule"], steps=of["steps"],
        clip=of["clip"], tokens=of["batch"] * of["length"], dtype=of["dtype"],
    )  # fmt: skip


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What is measured of a network; the forecast of any plan and learning rate follows from it."""
    model = make(settings["networks"][job["network"]], job["seed"])
    found = forecast(model, batches(settings, job["seed"]), Plan(warmup=1), progress=False)
    return {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "architecture": model.config.model_type,
        "numbers": dict(found.numbers),
        "notes": list(found.notes),
    }


@functools.cache
def _ids(vocabulary: int) -> Tensor:
    rows = load_dataset("parquet", data_files=str(data.wikitext_file("validation")), split="train")["text"]
    text = "".join(rows)
    tokenizer = train_byte_level_bpe(text, vocabulary)
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def batches(settings: dict[str, Any], seed: int) -> list[dict[str, Tensor]]:
    """Text in tokens of a vocabulary of its own; a larger vocabulary of a network has rows that are never seen."""
    draw = torch.Generator().manual_seed(seed)
    size, length = settings["sequences"], settings["tokens"]
    found = [data.passages(_ids(settings["vocabulary"]), draw, size, length) for _ in range(settings["batches"])]
    return [{"input_ids": ids, "labels": ids} for ids in found]


def _score(known: list[tuple[float, bool]]) -> str:
    """How many are right, and the Brier score, beside what needs no model."""
    if not known:
        return "No run can be assessed."
    right, lost = sum((p >= 0.5) == was for p, was in known), sum(was for _, was in known)
    share = lost / len(known)
    brier = sum((p - was) ** 2 for p, was in known) / len(known)
    return (
        f"{right} of {len(known)} are right at a limit of 50%; the more frequent outcome is right in "
        f"{max(lost, len(known) - lost)}. Brier score {brier:.3f}; the share of lost runs alone, {share:.0%}, has "
        f"{share * (1 - share):.3f}."
    )


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Prediction beside outcome, run by run; then the pairs in which one thing differs."""
    measured = {row["network"]: row for row in rows}
    model = shipped("initialised")
    lines, said = [], {}
    for run_ in settings["runs"]:
        if run_["network"] not in measured:
            continue
        row = measured[run_["network"]]
        prediction = model.predict(row["numbers"], plan_of(run_, settings), row["architecture"])
        p, interval = prediction.p_lost(run_["lr"]), prediction.interval(run_["lr"])
        said[run_["id"]] = p
        lines.append(
            [
                run_["id"], run_["network"], f"{row['weights'] / 1e6:,.0f}", f"{run_['lr']:g}",
                f"**{run_['outcome']}** ({run_['said']})", "-" if p is None else f"{p:.0%}",
                "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
                *("-" if (rate := prediction.rate_at(at)) is None else f"{rate:.2g}" for at in (SAFE, 0.5)),
                prediction.status,
            ]
        )  # fmt: skip
    heads = [
        "run", "network", "million weights", "learning rate", "outcome (as published)", "P(lost)", "95% interval",
        "below 5% up to", "50% at", "state",
    ]  # fmt: skip
    outcomes = {run_["id"]: run_["outcome"] == "lost" for run_ in settings["runs"]}
    text = [*table(heads, lines), "", _score([(p, outcomes[name]) for name, p in said.items() if p is not None]), ""]
    pairs = [
        [fine, lost, f"{said[fine]:.0%}", f"{said[lost]:.0%}", "yes" if said[lost] > said[fine] else "no"]
        for fine, lost in settings["pairs"]
        if said.get(fine) is not None and said.get(lost) is not None
    ]
    return "\n".join([*text, *table(["fine", "lost", "P(lost) of the first", "of the second", "higher"], pairs)]) + "\n"
