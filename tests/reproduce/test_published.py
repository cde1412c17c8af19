"""published: networks that are too large for gradients are predicted from forward passes alone."""

import torch

from hf_rksp.risk.calibrated import shipped
from hf_rksp.risk.plan import Plan
from scripts.reproduce.published.experiment import measured_forward, tables
from scripts.reproduce.published.forward_model import STEP, forward_model
from scripts.reproduce.published.networks import make

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


def test_the_table_labels_them():
    numbers, _ = measured_forward(make(TINY, 0), batches())
    common = {"source": "s", "network": "tiny", "warmup": 10, "steps": 200}
    settings = {
        "sources": {"s": {"beta2": 0.95, "decay": 0.1, "schedule": "cosine", "clip": 1.0, "batch": 2, "length": 32}},
        "runs": [
            {"id": "A", "lr": 0.001, "outcome": "fine", "said": "x", **common},
            {"id": "B", "lr": 0.1, "outcome": "lost", "said": "y", **common},
        ],
        "pairs": [["A", "B"]],
    }
    row = {"network": "tiny", "weights": 1_000_000, "architecture": "qwen3", "forward": True, "numbers": numbers}
    text = tables([row], settings)
    assert text.count("| forward passes |") == 2 and "Features of forward passes alone. " in text
    assert text.rstrip().endswith("| yes |") and "within a factor of 2" in text
