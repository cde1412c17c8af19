"""The runs that the risk model learns from: an ensemble is the single runs, the design is fixed, labels are as they are defined."""

import hashlib
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from transformers import MixtralForCausalLM

from hf_rksp.profile.directions import muon
from hf_rksp.risk.calibrated import shipped
from hf_rksp.risk.fit import fit
from scripts.reproduce.data import recall, wikitext
from scripts.reproduce.risk import censored, experiment, finetune, labels, tasks, unseen
from scripts.reproduce.risk.crossval import RIDGE
from scripts.reproduce.risk.dataset import edge_of, read
from scripts.reproduce.risk.design import draw
from scripts.reproduce.risk.ensemble import Recipe, train
from scripts.reproduce.risk.methods import METHODS, TRAINED_METHODS, Method
from scripts.reproduce.risk.networks import FAMILIES, TWINS, make

SHAPE = {"width": 16, "layers": 2, "heads": 2, "std": 0.05, "vocabulary": 32, "length": 9}
RATES = (1e-3, 3e-2)
RECALL = {"task": "recall"}


def batches(step):
    ids, labels_ = recall(torch.Generator().manual_seed(step), 8)
    return ids.expand(2, -1, -1), labels_.expand(2, -1, -1)


def optimizers(model, recipe, rate):
    if recipe.optimizer == "sgd":
        decayed = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.SGD(groups, lr=rate, momentum=0.9)]
    if recipe.optimizer == "muon":
        found = muon(model)
        for optimizer in found:
            optimizer.param_groups[0]["lr"] = rate
        return found
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, recipe.beta2))]


def plain(family, recipe, rate):
    """The same run by a loop as everybody writes it."""
    model, losses = make(FAMILIES[family], SHAPE, 0), []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the scheduler is stepped before the first step, so that warm-up begins above zero
        found = optimizers(model, recipe, rate)
        schedules = [torch.optim.lr_scheduler.LambdaLR(one, recipe.rate) for one in found]
        for step in range(recipe.steps):
            ids, asked = (part[0] for part in batches(step))
            loss = model(ids, labels=asked).loss
            loss.backward()
            if recipe.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer, schedule in zip(found, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_an_ensemble_is_the_run_alone(family):
    recipe = Recipe(steps=4, warmup=2, schedule="cosine", beta2=0.95, decay=0.1, clip=1.0)
    together = train([make(FAMILIES[family], SHAPE, 0)] * 2, RATES, batches, recipe).losses
    for run, rate in enumerate(RATES):
        assert together[:, run].tolist() == pytest.approx(plain(family, recipe, rate), rel=2e-4)


def test_muon_in_an_ensemble_is_that_of_torch():
    recipe = Recipe(steps=3, warmup=0, optimizer="muon", decay=0.0)
    together = train([make(FAMILIES["preln"], SHAPE, 0)] * 2, RATES, batches, recipe).losses
    for run, rate in enumerate(RATES):
        assert together[:, run].tolist() == pytest.approx(plain("preln", recipe, rate), rel=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_rounds_and_changes_nothing_else(family):
    recipe = Recipe(steps=2, warmup=0)
    low, full = (
        train([make(FAMILIES[family], SHAPE, 0)] * 2, RATES, batches, replace(recipe, dtype=dtype)).losses
        for dtype in ("bfloat16", "float32")
    )
    assert not torch.equal(low, full)
    torch.testing.assert_close(low[0], full[0], rtol=2e-2, atol=0)


def test_a_run_that_explodes_leaves_the_others_alone():
    recipe = Recipe(steps=6, warmup=0)
    rows = train([make(FAMILIES["none"], SHAPE, 0)] * 2, (1e-3, 1e30), batches, recipe).rows(points=3)
    alone = train([make(FAMILIES["none"], SHAPE, 0)] * 2, (1e-3, 1e-3), batches, recipe).rows(points=3)
    assert rows[0] == alone[0] and rows[0]["exploded"] is None and len(rows[0]["curve"]) == 3
    assert rows[1]["exploded"] == 1 and rows[1]["final"] is None and rows[1]["curve"][-1] is None


def test_dense_experts_are_those_of_transformers():
    ours = make(FAMILIES["mixtral"], SHAPE, 0)
    theirs = MixtralForCausalLM(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids, asked = recall(torch.Generator().manual_seed(0), 8)
    for model in (ours, theirs):
        model(ids, labels=asked).loss.backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_sgd_in_an_ensemble_is_that_of_torch():
    recipe = Recipe(steps=4, warmup=0, optimizer="sgd", decay=0.1)
    together = train([make(FAMILIES["preln"], SHAPE, 0)] * 2, (0.1, 0.5), batches, recipe).losses
    for run, rate in enumerate((0.1, 0.5)):
        assert together[:, run].tolist() == pytest.approx(plain("preln", recipe, rate), rel=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_captured_steps_are_those_of_the_host(family, optimizer):
    recipe = Recipe(steps=8, warmup=2, schedule="cosine", optimizer=optimizer, clip=1.0)
    here, there = (
        train([make(FAMILIES[family], SHAPE, 0)] * 2, RATES, batches, recipe, device=device).losses
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there, here, rtol=2e-3 if optimizer == "adamw" else 2e-2, atol=0)


def test_a_range_test_rises_by_one_factor():
    recipe = Recipe(steps=14, warmup=0, schedule="range")
    assert [recipe.rate(step) for step in range(14)] == pytest.approx([2.0 ** (step - 13) for step in range(14)])


def test_the_design_is_fixed_and_its_families_take_turns():
    assert draw(7) == draw(7) != draw(16)
    assert [draw(number)["family"] for number in range(9)] == list(FAMILIES)
    assert sorted(family for group in TWINS for family in group) == sorted(FAMILIES)


def test_outcomes():
    def run(lr, final, exploded=None):
        return {"lr": lr, "final": final, "exploded": exploded}

    trivial = math.log(16)
    runs = [run(1, trivial - 0.2), run(2, trivial - 1), run(4, trivial - 0.8), run(8, trivial - 0.7), run(16, 0.0, 3)]
    assert labels.outcomes(runs, RECALL) == ["slow", "useful", "useful", "useless", "exploded"]
    assert labels.highest_surviving(runs, RECALL) == 4
    learnt_nothing = [run(1, trivial), run(2, trivial + 1), run(4, None, 0)]
    assert labels.outcomes(learnt_nothing, RECALL) == ["useful", "useful", "exploded"]
    assert labels.highest_surviving([run(1, None, 0), run(2, None, 0)], RECALL) == 0.5


def test_trained_weights_are_damaged_above_the_loss_that_they_began_with():
    finals = ((0.25, 1.02), (1, 0.5), (2, 0.95), (4, 1.2))
    runs = [{"lr": lr, "before": 1.0, "after": final, "final": final, "exploded": None} for lr, final in finals]
    assert labels.outcomes(runs, {"start": "pretrained"}) == ["slow", "useful", "useless", "damaged"]
    little = [run | {"final": 1 - (1 - run["final"]) / 10} for run in runs]  # less to be learnt than counts
    assert labels.outcomes(little, {"start": "pretrained"}) == ["useful", "useful", "useful", "damaged"]


@pytest.mark.parametrize("number", range(8))
def test_a_run_of_fine_tuning_is_the_run_alone(number, monkeypatch):
    text = torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    monkeypatch.setattr(finetune, "wikitext", lambda split: text)
    for name in ("_BEFORE", "_BEFORE_MASKED"):
        monkeypatch.setattr(finetune, name, replace(getattr(finetune, name), steps=2))
    small = {"width": 16, "layers": 2, "heads": 2, "sequences": 4, "length": 16}
    configuration = finetune.draw(number) | small | {"adaptation": "lora" if number >= 4 else "full"}
    model = finetune.models(configuration, (0,))[0]
    first = next(iter(model.parameters())).clone()
    recipe = Recipe(steps=3, warmup=0, decay=0.0)
    ids, asked = finetune.batch(configuration, 0, 0)
    found = train([model] * 2, (1e-3, 1e-2), lambda step: (ids.expand(2, *ids.shape), asked.expand(2, *asked.shape)), recipe,
                  configuration["objective"], held_out=[(ids.expand(2, *ids.shape), asked.expand(2, *asked.shape))])  # fmt: skip
    optimizer, losses = (
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0),
        [],
    )
    for _ in range(3):
        loss = model(ids, labels=asked).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert found.losses[:, 1].tolist() == pytest.approx(losses, rel=1e-3)
    with torch.no_grad():
        assert float(found.after[1]) == pytest.approx(float(model(ids, labels=asked).loss), rel=1e-3)
    assert found.before[1] == found.losses[0, 1]
    assert torch.equal(first, next(iter(model.parameters()))) == (configuration["adaptation"] == "lora")


@pytest.mark.skipif("HF_RKSP_DATA" not in os.environ, reason="needs WikiText-103 under HF_RKSP_DATA")
def test_the_trivial_loss_of_text_is_the_entropy_of_its_bytes():
    share = torch.bincount(wikitext("validation").long(), minlength=256).double() / len(wikitext("validation"))
    assert tasks.TASKS["text"].trivial == pytest.approx(float(torch.special.entr(share).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("start", "rows", "method"),
    [("initialised", "results", METHODS[-1]), ("pretrained", "finetune", TRAINED_METHODS[-1])],
)
def test_the_shipped_model_is_that_of_the_committed_rows(start, rows, method):
    path, model = Path(tasks.__file__).parent / f"{rows}.jsonl", shipped(start)
    remedy = "run: scripts/evaluate_risk.py --write"
    assert model.trained_on["rows_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), remedy
    assert model.features == method.features, remedy
    every = METHODS if start == "initialised" else TRAINED_METHODS
    cases = [case for case in read(path) if case.judged and all(one.has(case) for one in every)]
    made = fit(method.outcomes(cases), RIDGE)
    assert model.bias == pytest.approx(made.bias, abs=0.05), remedy
    assert model.weights == pytest.approx(list(made.weights), abs=0.05), remedy


def test_the_interval_censored_fit_finds_the_line_that_made_the_intervals():
    dice = numpy.random.default_rng(0)
    cases, rates = [], 2.0 ** numpy.arange(-9, 0)
    for number, case in enumerate(read(Path(experiment.__file__).parent / "results.jsonl")[:200]):
        x = dice.normal()
        lost = numpy.log2(rates) > -5 + 2 * x + 0.3 * dice.normal()
        row = {"seed": number, "x": x}
        cases.append(replace(case, lr=rates, lost=lost, edge=edge_of(rates, lost), row=row))
    method = Method("x", (), lambda case: (case.row["x"],))
    found = censored.thresholds(method, cases, cases)
    truth = numpy.array([-5 + 2 * case.row["x"] for case in cases])
    assert sum(case.edge is None for case in cases) >= 3  # lr* beyond the rates that were tried
    assert abs(found - truth).max() < 0.5
    assert abs(found - truth).mean() < 0.15


def test_lr_star_splits_survivors_from_lost_runs():
    rates = 2.0 ** numpy.arange(-4, 4)
    in_order = rates > 1
    assert edge_of(rates, in_order) == pytest.approx(2**0.5)
    one_spike = in_order.copy()
    one_spike[0] = True
    assert edge_of(rates, one_spike) == pytest.approx(2**0.5)
    assert edge_of(rates, rates > 99) is None and edge_of(rates, rates < 99) is None
    many_seeds = numpy.repeat(rates, 3)
    assert edge_of(many_seeds, many_seeds > 1) == pytest.approx(2**0.5)


@pytest.mark.parametrize("number", range(17))
def test_what_is_sealed_can_run(number, monkeypatch):
    """Two steps of each kind; what they lead to is not looked at."""
    text = torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    monkeypatch.setattr(tasks, "wikitext", lambda split: text)
    monkeypatch.setattr(unseen, "cifar10", lambda: images)
    configuration, coarse = experiment.configuration_of("sealed", number)
    small = {"width": 16, "layers": 2, "heads": 2, "sequences": 2, "steps": 2, "warmup": 0}
    configuration |= small | ({} if configuration["task"] == "cifar10" else {"length": 8})
    models = experiment.models_of(configuration, (0,))
    (run,) = experiment.trained(models, configuration, [(0, 1e-4)])
    assert run["final"] == pytest.approx(math.log(10 if configuration["task"] == "cifar10" else 256), rel=0.1)
    assert len(coarse) == 14
