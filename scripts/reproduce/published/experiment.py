"""Runs that others have published: what our forecast says of each, beside what became of it. One job measures one network."""

from __future__ import annotations

import functools
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn

from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.forecast import forecast
from hf_rksp.inputs import train_byte_level_bpe
from hf_rksp.profile.model import profile_model
from hf_rksp.profile.signals import measure_signals
from hf_rksp.risk.calibrated import SAFE, shipped
from hf_rksp.risk.features import Numbers, forward_numbers
from hf_rksp.risk.plan import Plan
from scripts.reproduce import data
from scripts.reproduce.harness.markdown import table

from .forward_model import forward_model
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
    network = settings["networks"][job["network"]]
    model: Any = make(network, job["seed"])
    text = batches(settings, job["seed"])
    if network.get("forward"):
        numbers, notes = measured_forward(model, text)
    else:
        found = forecast(model, text, Plan(warmup=1), progress=False)
        numbers, notes = dict(found.numbers), list(found.notes)
    return {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "architecture": model.config.model_type,
        "forward": bool(network.get("forward")),
        "numbers": numbers,
        "notes": notes,
    }


def measured_forward(model: nn.Module, text: list[dict[str, Tensor]]) -> tuple[Numbers, list[str]]:
    """The numbers that forward passes give, and the notes on them."""
    inputs = [{"input_ids": batch["input_ids"]} for batch in text]
    profile = profile_model(model, inputs, groups=0, progress=False)
    with untouched(model):
        signals = measure_signals(model, find_stacks(model), lambda: forward(model, text[0]))
    return forward_numbers(profile, signals), list(profile.notes)


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
    """How many are right, and the Brier score, with what needs no model."""
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
    models = {False: shipped("initialised"), True: forward_model()}
    lines: list[list[str]] = []
    said: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for run_ in settings["runs"]:
        if run_["network"] not in measured:
            continue
        row = measured[run_["network"]]
        prediction = models[row["forward"]].predict(row["numbers"], plan_of(run_, settings), row["architecture"])
        p, interval = prediction.p_lost(run_["lr"]), prediction.interval(run_["lr"])
        if p is not None:
            said[row["forward"]][run_["id"]] = p
        lines.append(
            [
                run_["id"], run_["network"], f"{row['weights'] / 1e6:,.0f}", f"{run_['lr']:g}",
                f"**{run_['outcome']}** ({run_['said']})", "-" if p is None else f"{p:.0%}",
                "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
                *("-" if (rate := prediction.rate_at(at)) is None else f"{rate:.2g}" for at in (SAFE, 0.5)),
                prediction.status, "forward passes" if row["forward"] else "all",
            ]
        )  # fmt: skip
    heads = [
        "run", "network", "million weights", "learning rate", "outcome (as published)", "P(lost)", "95% interval",
        "below 5% up to", "50% at", "state", "features",
    ]  # fmt: skip
    outcomes = {run_["id"]: run_["outcome"] == "lost" for run_ in settings["runs"]}
    text = [*table(heads, lines), ""]
    for by_forward, what in ((False, "All features"), (True, "Features of forward passes alone")):
        if said[by_forward]:
            text += [f"{what}. {_score([(p, outcomes[name]) for name, p in said[by_forward].items()])}", ""]
    if said[True]:
        text += [f"The model of forward passes alone: {models[True].description[2]}", ""]
    known = said[False] | said[True]
    pairs = [
        [fine, lost, f"{known[fine]:.0%}", f"{known[lost]:.0%}", "yes" if known[lost] > known[fine] else "no"]
        for fine, lost in settings["pairs"]
        if fine in known and lost in known
    ]
    return "\n".join([*text, *table(["fine", "lost", "P(lost) of the first", "of the second", "higher"], pairs)]) + "\n"
