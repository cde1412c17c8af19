"""The forecast before the first step of a Trainer: it changes nothing, it is the first event, and it can refuse to begin."""

import logging

import pytest
import torch
from transformers import GPT2ForSequenceClassification, Trainer

from hf_rksp import RKSPTrainer
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from tests.training.common import arguments, assert_same_weights, gpt2, hooks, trained, trainer


def forecast_of(run):
    (event,) = [row for row in read_history(run.rksp.path).events if row["by"] == "risk"]
    return event


def test_a_forecast_changes_nothing_and_is_the_first_event(tmp_path):
    with_it = trained(tmp_path / "a", gpt2(), risk="warn")
    without = trained(tmp_path / "b", gpt2())
    assert_same_weights(with_it.model, without.model)
    assert [row["loss"] for row in with_it.state.log_history if "loss" in row] == [
        row["loss"] for row in without.state.log_history if "loss" in row
    ]
    history = read_history(with_it.rksp.path)
    event = history.events[0]
    assert (event["by"], event["what"], event["step"]) == ("risk", "forecast", 0)
    assert 0 <= event["p_lost"] <= 1 and event["lr_max"] > 0 and "P(lost) at learning rate 0.01" in event["text"]
    assert event["plan"]["steps"] == 4 and event["plan"]["optimizer"].startswith("adamw")
    assert event["features"]["depth"] == len(with_it.model.transformer.h)


def test_stop_refuses_to_begin(tmp_path, caplog):
    run = trainer(tmp_path, gpt2(), risk="stop", learning_rate=30.0)
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(InputError, match=r"learning_rate: P\(lost\) at learning rate 30 .*risk='stop'"):
        run.train()
    assert run.state.global_step == 0 and hooks(run.model) == 0
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))
    assert not list(tmp_path.glob("*.jsonl"))
    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "warned", gpt2(), risk="warn", learning_rate=30.0)
    assert any("P(lost) at learning rate 30" in record.getMessage() for record in caplog.records)
    assert trained(tmp_path / "limit", gpt2(), risk="stop", risk_limit=1.0, learning_rate=30.0).state.global_step == 4


def test_without_monitor_and_kss_the_forecast_still_has_a_history(tmp_path):
    run = trained(tmp_path, gpt2(), risk="warn", spectrum=False, kss=False)
    assert forecast_of(run)["status"] in ("in range", "extrapolated")


def test_a_resumed_run_has_begun_already(tmp_path):
    trained(tmp_path, gpt2(), risk="warn", save_strategy="steps", save_steps=2)
    again = trainer(tmp_path, gpt2(), risk="warn", save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert forecast_of(again)["step"] == 0


def test_what_cannot_be_assessed_says_why_and_goes_on(tmp_path):
    run = trained(tmp_path, gpt2(), risk="stop", optim="sgd", learning_rate=0.01)
    event = forecast_of(run)
    assert event["status"] == "not assessable" and "optimizer 'sgd'" in event["text"] and run.state.global_step == 4


def test_an_objective_without_runs_is_not_assessable(tmp_path):
    torch.manual_seed(0)
    config = gpt2().config
    config.pad_token_id, config.num_labels = 0, 2
    rows = [{"input_ids": list(range(1, 9)), "labels": place % 2} for place in range(32)]
    run = trained(tmp_path, GPT2ForSequenceClassification(config), rows, risk="warn")
    assert "objective 'classification'" in forecast_of(run)["text"]


def test_a_trainer_without_our_arguments_takes_the_mode_itself(tmp_path):
    from transformers import TrainingArguments

    run = trained(tmp_path, gpt2(), None, RKSPTrainer, TrainingArguments, risk="warn")
    assert forecast_of(run)["p_lost"] is not None
    assert isinstance(run, Trainer)


@pytest.mark.parametrize(("values", "name"), [({"risk": "maybe"}, "risk="), ({"risk_limit": 2.0}, "risk_limit=")])
def test_settings_that_cannot_be_are_refused(tmp_path, values, name):
    with pytest.raises(InputError, match=name):
        arguments(tmp_path, **values)
