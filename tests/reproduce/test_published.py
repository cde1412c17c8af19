"""published: networks that are too large for gradients are predicted from forward passes alone."""

import math
import re

import torch

from hf_rksp.risk.calibrated import shipped
from hf_rksp.risk.plan import Plan
from scripts.reproduce.harness.cli import ROOT
from scripts.reproduce.harness.config import section
from scripts.reproduce.published.experiment import measured_forward
from scripts.reproduce.published.forward_model import STEP, forward_model
from scripts.reproduce.published.networks import make
from scripts.reproduce.published.runs import edges, pairs, runs_of
from scripts.reproduce.published.tables import plan_of, tables

TINY = {
    "model_type": "qwen3", "init": "own", "forward": True, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,
    "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def batches():
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 64, (2, 32), generator=draw) for _ in range(8)]
    return [{"input_ids": each, "labels": each} for each in ids]


def test_the_model_of_forward_passes_is_the_shipped_one_without_the_step():
    assert set(shipped("initialised").features) - set(forward_model().features) == set(STEP)


def test_forward_passes_are_enough_for_it_and_not_for_the_shipped_one():
    numbers, _ = measured_forward(make(TINY, 0), batches())
    plan = Plan(warmup=10, steps=200, tokens=64)
    assert forward_model().predict(numbers, plan, "qwen3").p_lost(0.01) is not None
    refused = shipped("initialised").predict(numbers, plan, "qwen3")
    assert refused.p_lost(0.01) is None and "could not be measured" in refused.reasons[0]


def settings_of(**sweep):
    source = {"beta2": 0.95, "schedule": "cosine", "clip": 1.0, "batch": 8, "length": 32, "warmup": 10}
    first = {"id": "t", "source": "s", "network": "tiny", "lr": 0.01, "decay": 0.1, "steps": 200, "loss": 1.0}
    return {
        "networks": {"tiny": TINY},
        "sources": {"s": source},
        "sweeps": [first | sweep],
        "runs": [first | {"id": "A", "decay": 0.0, "outcome": "fine", "said": "x"}],
        "pairs": [],
    }


def test_a_row_of_a_table_differs_in_one_setting_and_is_lost_by_what_it_misses():
    settings = settings_of(batch=8, lr_is={0.02: 1.2, 0.04: 3.9}, clip_is={0: 1.1}, batch_is={16: 1.0, 4: math.nan})
    runs = {run["id"]: run for run in runs_of(settings)}
    assert [name for name, run in runs.items() if run["outcome"] == "lost"] == ["t, lr 0.04", "t, batch 4"]
    assert runs["t, clip 0"]["clip"] is None and runs["t"]["clip"] == 1.0
    assert (runs["t, batch 16"]["steps"], runs["t, batch 4"]["steps"], runs["t"]["steps"]) == (
        100,
        400,
        200,
    )  # as much text
    every = list(runs.values())
    assert [(fine["id"], lost["id"]) for fine, lost in edges(every)] == [("t, lr 0.02", "t, lr 0.04")]
    assert [(fine["id"], lost["id"]) for fine, lost in pairs(every, [["A", "t"]])] == [("t", "t, batch 4"), ("A", "t")]


def test_every_published_run_has_a_plan_and_an_outcome():
    found = section(ROOT / "published").settings
    runs = runs_of(found)
    assert len({run["id"] for run in runs}) == len(runs) >= 12
    assert {run["outcome"] for run in runs} == {"fine", "lost"} and all(plan_of(run).tokens > 0 for run in runs)
    for run in (run for run in runs if run["source"] == "wen"):
        assert run["steps"] * run["batch"] in {n * 128 * 5120 for n in (1, 2, 4, 8)} | {128 * 11520, 256 * 10240}


def test_a_network_without_norms_has_none():
    model = make(TINY | {"norm": "none"}, 0)
    assert not any("Norm" in type(module).__name__ for module in model.modules())


def test_the_table_labels_them():
    numbers, _ = measured_forward(make(TINY, 0), batches())
    row = {"network": "tiny", "weights": 1_000_000, "architecture": "qwen3", "forward": True, "numbers": numbers}
    text = tables([row], settings_of(lr_is={0.1: math.nan}, warmup_is={50: 4.1}))
    assert text.count("| forward passes |") == 4 and "Features of forward passes alone. " in text
    assert "| t | 0.01 | 0.1 |" in text and "within a factor of 2" in text
    assert len(re.findall(r"\| t \| t, warmup 50 \| .* \| no \|", text)) == 1
