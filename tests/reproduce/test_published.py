"""published: what is measured of a network, what is said of its runs, and what that is compared with."""

import math
import re

import pytest
import torch

from hf_rksp.forecast import forecast
from hf_rksp.risk.calibrated import shipped
from hf_rksp.risk.plan import Plan
from scripts.reproduce.harness.cli import ROOT
from scripts.reproduce.harness.config import section
from scripts.reproduce.published import experiment
from scripts.reproduce.published.experiment import measured
from scripts.reproduce.published.figure import picture
from scripts.reproduce.published.judged import judged, mean_rate, plan_of
from scripts.reproduce.published.models import FORWARD, STEP, UNMEASURED, model
from scripts.reproduce.published.networks import make
from scripts.reproduce.published.runs import edges, pairs, runs_of
from scripts.reproduce.published.tables import tables

TINY = {
    "model_type": "qwen3", "init": "own", "forward": True, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,
    "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def batches():
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 64, (2, 32), generator=draw) for _ in range(8)]
    return [{"input_ids": each, "labels": each} for each in ids]


def forward_numbers():
    return measured(make(TINY, 0), batches(), 8, forward_only=True)[0]


def test_the_model_of_forward_passes_is_the_shipped_one_without_the_step():
    assert set(shipped("initialised").features) - set(model(FORWARD.name).features) == set(STEP)


def test_forward_passes_are_enough_for_it_and_not_for_the_shipped_one():
    plan = Plan(warmup=10, steps=200, tokens=64)
    assert model(FORWARD.name).predict(forward_numbers(), plan, "qwen3").p_lost(0.01) is not None
    refused = shipped("initialised").predict(forward_numbers(), plan, "qwen3")
    assert refused.p_lost(0.01) is None and "could not be measured" in refused.reasons[0]


def test_the_numbers_are_those_of_a_forecast():
    plan = Plan(warmup=10, steps=200, tokens=64)
    numbers, _ = measured(make(TINY, 0), batches(), 8, forward_only=False)
    assert numbers == pytest.approx(dict(forecast(make(TINY, 0), batches(), plan, progress=False).numbers))


def test_plan_and_shape_need_no_measurement_and_the_mean_needs_nothing():
    plan = Plan(warmup=10, steps=200, tokens=64)
    seen = [
        model(UNMEASURED.name).predict(forward_numbers() | {"residual_growth": growth}, plan, "qwen3").threshold
        for growth in (1.0, 9.0)
    ]
    assert seen[0] == seen[1]
    assert not model("mean").features and 0.003 < mean_rate() < 0.03


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
    assert len({each["id"] for each in runs}) == len(runs) >= 12
    assert {each["outcome"] for each in runs} == {"fine", "lost"} and all(plan_of(each).tokens > 0 for each in runs)
    for one in (each for each in runs if each["source"] == "wen"):
        assert one["steps"] * one["batch"] in {n * 128 * 5120 for n in (1, 2, 4, 8)} | {128 * 11520, 256 * 10240}


def test_a_network_without_norms_has_none():
    model = make(TINY | {"norm": "none"}, 0)
    assert not any("Norm" in type(module).__name__ for module in model.modules())


def test_embeddings_as_in_haliax_are_smaller_by_the_root_of_the_width():
    small, large = (
        float(make(TINY | {"init": init, "vocab_size": 4096}, 0).get_input_embeddings().weight.std())
        for init in ("haliax", "fan in")
    )
    assert small == pytest.approx(large / 32**0.5, rel=0.05)


def row_of(numbers, forward=True):
    return {"network": "tiny", "weights": 10**6, "architecture": "qwen3", "forward": forward, "numbers": numbers}


def test_a_network_that_is_not_finite_from_the_start_has_a_row_and_no_prediction(monkeypatch):
    monkeypatch.setattr(experiment, "batches", lambda settings, seed: batches())
    settings = settings_of(lr_is={0.1: math.nan}) | {"steps_of": 8}
    monkeypatch.setattr(experiment, "make", lambda values, seed: broken(make(values, seed)))
    row = {"network": "tiny"} | experiment.run({"network": "tiny", "seed": 0}, settings)
    assert not row["numbers"] and row["notes"]
    text = tables([row], settings)
    assert text.count("| not finite before the first step |") == 3
    assert "3 runs are not in the scores" in text and "1 of them were lost" in text


def broken(network):
    network.model.layers[0].mlp.up_proj.weight.data.fill_(math.inf)
    return network


def test_a_pair_of_networks_is_judged_by_thresholds_and_stands_apart_from_another_plan():
    numbers = forward_numbers()
    settings = settings_of(warmup_is={50: 4.1}, lr_is={0.1: math.nan})
    settings["networks"]["other"] = TINY
    settings["runs"] += [settings["runs"][0] | {"id": "B", "network": "other", "outcome": "lost"}]
    settings["pairs"] = [["A", "B"]]
    worse = numbers | {"residual_growth": numbers["residual_growth"] * 64}
    text = tables([row_of(numbers), row_of(worse) | {"network": "other"}], settings)
    first, second = (part.split("## ")[0] for part in text.split("## One thing differs")[1].split("The same network"))
    assert len(re.findall(r"\| A \| B \| .* \| (yes|no) \| no \|", first)) == 1, "plan and shape are the same"
    assert len(re.findall(r"\| t \| t, warmup 50 \| .* \| no \| no \|", second)) == 1


def test_the_scores_have_beside_them_what_measures_nothing():
    settings = settings_of(lr_is={0.1: math.nan, 0.2: math.nan})
    rows = [row_of(forward_numbers())]
    text = tables(rows, settings)
    found = judged(rows, settings)
    assert [each.lost for each in found] == [False, True, True, False]
    line = next(line for line in text.splitlines() if line.startswith("| all | 4 | 2 |")).split(" | ")
    assert line[7:] == ["2", "2 |"], "the mean of the AdamW runs is below .01: every run lies above it"
    assert "AUROC over all runs: hf_rksp 1.00, plan and shape 1.00, the learning rate 1.00" in text
    assert "| t | 0.01 | 0.1 |" in text and text.count("| forward passes |") == 4


def test_sources_count_alike_and_runs_without_an_answer_are_counted():
    text = tables([row_of(forward_numbers())], settings_of(lr_is={0.1: math.nan}))
    answers = sum(
        not each.says_nothing for each in judged([row_of(forward_numbers())], settings_of(lr_is={0.1: math.nan}))
    )
    assert f" of {answers} | " in next(line for line in text.splitlines() if line.startswith("| s |"))
    assert text.count("says nothing |") == 3 - answers


def test_the_picture_has_a_bar_for_every_plan_with_both_outcomes():
    settings = settings_of(lr_is={0.02: 1.2, 0.1: math.nan})
    made = picture([row_of(forward_numbers())], settings)
    threshold = model(FORWARD.name).predict(forward_numbers(), plan_of(runs_of(settings)[0]), "qwen3").threshold
    assert made.alt.startswith(
        f"t: hf_rksp expects half of the runs to be lost; line: 5% to 95% {threshold:.2g}, plan and shape"
    )
    assert made.alt.endswith("0.02 to 0.1")
    assert "nothing" not in made.alt and picture([row_of({})], settings).alt.startswith("t: published: from")


def test_what_decides_it_are_factors_of_the_rate_at_which_half_are_lost():
    settings = settings_of(lr_is={0.02: 1.2}, steps=100000)
    text = tables([row_of(forward_numbers())], settings).split("## What decides it")[1].split("## ")[0]
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| tiny")]
    assert len(lines) == 1, "one line per network"
    factors = [float(cell.rstrip(" |")) for cell in lines[0][2:]]
    assert math.prod(factors[:3]) * 2 ** model(FORWARD.name).bias == pytest.approx(factors[3], rel=0.15)
    one = model(FORWARD.name).predict(forward_numbers(), plan_of(runs_of(settings)[0]), "qwen3")
    sizes = math.prod(each.factor for each in one.contributions if each.key in ("width", "depth", "steps"))
    assert factors[0] == pytest.approx(sizes, rel=0.06) and factors[2] != 1
