"""Runs that others have published: what our forecast says of each, beside what became of it. One job measures one network."""

from __future__ import annotations

import functools
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn

from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.errors import NonFiniteError
from hf_rksp.forecast import label_share
from hf_rksp.inputs import train_byte_level_bpe
from hf_rksp.profile.model import profile_model
from hf_rksp.profile.signals import measure_signals
from hf_rksp.profile.step import measure_step
from hf_rksp.risk.features import Numbers, forward_numbers, numbers_of
from scripts.reproduce import data

from .judged import plan_of
from .networks import INITIALISATIONS, make
from .runs import runs_of
from .tables import tables

__all__ = ["check", "run", "tables"]


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there; every network and source of a run is in the settings."""
    data.wikitext_file("validation")
    for each in (*settings["sweeps"], *settings["runs"]):
        for field, known in (("network", settings["networks"]), ("source", settings["sources"])):
            if each[field] not in known:
                raise ValueError(f"run {each['id']}: {field} {each[field]!r} is not in settings.{field}s")
    for run_ in runs_of(settings):
        plan_of(run_)
    for job in jobs:
        if settings["networks"][job["network"]]["init"] not in INITIALISATIONS:
            raise ValueError(f"network {job['network']!r}: init is none of {', '.join(INITIALISATIONS)}")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What is measured of a network; the forecast of any plan and learning rate follows from it."""
    network = settings["networks"][job["network"]]
    model: Any = make(network, job["seed"])
    forward_only = bool(network.get("forward"))
    numbers: Numbers = {}
    try:
        numbers, notes = measured(model, batches(settings, job["seed"]), settings["steps_of"], forward_only)
    except NonFiniteError as error:
        notes = [str(error)]
    return {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "architecture": model.config.model_type,
        "forward": forward_only,
        "numbers": numbers,
        "notes": notes,
    }


def measured(
    model: nn.Module, text: list[dict[str, Tensor]], step_batches: int, forward_only: bool
) -> tuple[Numbers, list[str]]:
    """The numbers that a forecast takes, and the notes on them.

    Args:
        text: all of it is profiled.
        step_batches: how many of its batches the step of the optimizer is measured on.
        forward_only: take no gradient.

    Raises:
        NonFiniteError: states, loss or gradient are not finite.
    """
    inputs = [{"input_ids": batch["input_ids"]} for batch in text]
    step = None if forward_only else measure_step(model, None, text[:step_batches], progress=False)
    profile = profile_model(model, inputs, groups=0, progress=False)
    with untouched(model):
        signals = measure_signals(model, find_stacks(model), lambda: forward(model, text[0]))
    if step is None:
        return forward_numbers(profile, signals), list(profile.notes)
    numbers = numbers_of(profile, signals, step) | {"lora": 0.0, "label_share": label_share(text, "causal")}
    return numbers, [*profile.notes, *step.notes]


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
