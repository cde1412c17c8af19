"""The forecast before the first step of a Trainer: it changes nothing, it is the first event, and it can refuse to begin."""

import dataclasses
import logging
import random

import numpy
import pytest
import torch
from transformers import GPT2ForSequenceClassification, Trainer

from hf_rksp import RKSPTrainer
from hf_rksp.errors import InputError
from hf_rksp.forecast import Forecast
from hf_rksp.history.read import read_history
from hf_rksp.risk.calibrated import NO_ANSWER, NO_RATE, Prediction
from hf_rksp.risk.plan import Plan
from hf_rksp.training import before
from hf_rksp.training.before import Said, act, sentence
from hf_rksp.training.first_batches import _steps_of
from tests.training.common import arguments, assert_same_weights, gpt2, hooks, token_rows, trained, trainer


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


def test_an_interval_that_decides_nothing_stops_no_run(caplog):
    def said(interval, **values):
        return Said(0.9, "P(lost) is 90%.", {"p_lost_interval": interval, **values})

    act(said([0.001, 0.999]), "stop", 0.2)
    assert "P(lost) is 90%." in caplog.text, "it is said all the same"
    act(said([0.17, 1.0]), "stop", 0.2)
    for decided in (said([0.51, 1.0]), said([0.17, 1.0], names_rate=True), said([0.001, 0.999], status="lost")):
        with pytest.raises(InputError):
            act(decided, "stop", 0.2)


def test_a_sentence_says_that_the_interval_decides_nothing():
    prediction = Prediction("extrapolated", ("width: 768",), 0.0005, 1.0, 5.0, ())
    found = Forecast({}, Plan(), None, {}, prediction)
    said = sentence(found, 0.0006)
    assert not said.decides and NO_ANSWER in said.text and "(below 1% to above 99%)" in said.text
    assert sentence(Forecast({}, Plan(), None, {}, dataclasses.replace(prediction, uncertainty=0.5)), 0.0006).decides


def test_a_run_that_is_too_far_for_a_safe_rate_has_an_answer_at_the_extremes_alone():
    """Of 76 published runs with 81% to 96% and intervals down to 2% most were fine."""
    far = Prediction("extrapolated", ("width: 512",), 0.0004, 1.4, 3.6, ())
    assert not far.names_rate and [far.decides(lr) for lr in (1e-7, 0.0004, 0.008, 1.0)] == [True, False, False, True]
    assert 0.1 < far.interval(0.008)[0] < 0.5 and far.p_lost(0.008) > 0.8
    near = dataclasses.replace(far, uncertainty=1.3)
    assert near.names_rate and near.decides(0.0004)


def test_no_safe_rate_is_named_if_the_curve_is_not_known():
    """Far above the curve a probability is certain, and the learning rate at which it is 5% is not."""
    unknown = Prediction("extrapolated", ("width: 768",), 0.0005, 1.0, 1.2, ())
    said = sentence(Forecast({}, Plan(), None, {}, unknown), 0.05)
    assert said.decides and said.text.endswith(NO_RATE) and "it is below" not in said.text.lower()
    known = sentence(Forecast({}, Plan(), None, {}, dataclasses.replace(unknown, uncertainty=0.8)), 0.05)
    assert "It is below 5% up to" in known.text and NO_RATE not in known.text
    assert not said.values["names_rate"] and known.values["names_rate"]


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


def classifier(classes=2):
    torch.manual_seed(0)
    config = gpt2().config
    config.pad_token_id, config.num_labels = 0, classes
    return GPT2ForSequenceClassification(config)


def labelled(*labels):
    return [{"input_ids": list(range(1, 9)), "labels": labels[place % len(labels)]} for place in range(32)]


def test_a_classification_is_answered_for_trained_weights_alone(tmp_path):
    model = classifier()
    assert "objective 'classification'" in forecast_of(trained(tmp_path, model, labelled(0, 1), risk="warn"))["text"]
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[0] = 1.5  # as no initialiser leaves it
    event = forecast_of(trained(tmp_path / "again", model, labelled(0, 1), risk="warn"))
    assert event["plan"]["start"] == "pretrained" and 0 < event["p_lost"] < 1


def test_a_regression_is_not_assessable(tmp_path):
    text = forecast_of(trained(tmp_path, classifier(1), labelled(0.5, 1.5), risk="warn"))["text"]
    assert "cannot be assessed" in text and "one class for each text" in text


def test_a_trainer_without_our_arguments_takes_the_mode_itself(tmp_path):
    from transformers import TrainingArguments

    run = trained(tmp_path, gpt2(), None, RKSPTrainer, TrainingArguments, risk="warn")
    assert forecast_of(run)["p_lost"] is not None
    assert isinstance(run, Trainer)


@pytest.mark.parametrize(("values", "name"), [({"risk": "maybe"}, "risk="), ({"risk_limit": 2.0}, "risk_limit=")])
def test_settings_that_cannot_be_are_refused(tmp_path, values, name):
    with pytest.raises(InputError, match=name):
        arguments(tmp_path, **values)


def test_the_rate_and_the_schedule_are_those_of_what_was_passed(tmp_path):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=30.0, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
    run = trainer(tmp_path, model, risk="stop", optimizers=(optimizer, schedule))
    with pytest.raises(InputError, match="learning rate 30 "):
        run.train()
    plan = run.rksp.said.values["plan"]
    assert (plan["beta2"], plan["weight_decay"], plan["warmup"], plan["optimizer"]) == (0.95, 0.1, 2, "adamw")
    assert plan["schedule"] == "constant_with_warmup"


def test_a_run_that_is_lost_already_is_said_to_be(tmp_path):
    model = gpt2()
    model.transformer.wte.weight.data[3, 0] = float("nan")
    with pytest.raises(InputError, match=r"P\(lost\) is 100%: before the first step"):
        trained(tmp_path / "nan", model, risk="stop")
    model = gpt2()
    model.transformer.wte.weight.data *= 1000
    with pytest.raises(InputError, match=r"P\(lost\) is 100%: before the first step the"):
        trained(tmp_path / "large", model, risk="stop", learning_rate=1e-9)


class Odd(RKSPTrainer):
    """Counts in its loss, and divides by the number of steps, as trainers of one's own do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counted = {"train": [], "eval": []}

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.counted["train" if model.training else "eval"].append(1)
        return super().compute_loss(model, inputs, *args, **kwargs) * (
            1 + self.state.global_step / self.state.max_steps
        )


class Collator:
    """Hides tokens with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        hidden = torch.rand(ids.shape, generator=self.generator) < 0.2
        return {"input_ids": ids.masked_fill(hidden, 1), "labels": ids}


def test_what_a_trainer_and_a_collator_of_ones_own_hold_is_as_before(tmp_path):
    runs = [trained(tmp_path / mode, gpt2(), kind=Odd, data_collator=Collator(), risk=mode) for mode in ("off", "warn")]
    assert_same_weights(runs[0].model, runs[1].model)
    assert runs[0].counted == runs[1].counted and not runs[1].counted["eval"]
    assert forecast_of(runs[1])["p_lost"] is not None


class Drawing(torch.utils.data.Dataset):
    """Hides a token of each row with a generator of its own."""

    def __init__(self, generator):
        self.generator = generator

    def __len__(self):
        return 64

    def __getitem__(self, place):
        kind = type(self.generator)
        if kind is torch.Generator:
            drawn = int(torch.randint(0, 9, (), generator=self.generator))
        else:
            drawn = int(
                (self.generator.integers if hasattr(self.generator, "integers") else self.generator.randrange)(0, 9)
            )
        ids = (torch.arange(9) * 5 + place) % 40
        ids[drawn] = 1
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize(
    "make", [lambda: torch.Generator().manual_seed(7), lambda: numpy.random.default_rng(7), lambda: random.Random(7)]
)
def test_the_generator_of_a_dataset_is_where_it_was(tmp_path, make):
    runs = [trained(tmp_path / mode, gpt2(), Drawing(make()), risk=mode) for mode in ("off", "warn")]
    assert_same_weights(runs[0].model, runs[1].model)
    assert forecast_of(runs[1])["p_lost"] is not None


class Once(torch.utils.data.IterableDataset):
    """Goes on where it was left."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"lr_scheduler_type": "cosine_with_restarts"}])
def test_a_run_that_cannot_be_told_goes_on(tmp_path, changes, caplog):
    run = trainer(tmp_path, gpt2(), risk="stop", **changes)
    said = before.say(run, None)
    assert said.p_lost is None and "cannot be assessed" in said.text
    before.act(said, "stop", 0.2)
    assert "cannot be assessed" in caplog.text


def test_data_that_can_be_read_once_is_left_alone(tmp_path):
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in token_rows(64).rows]
    run = trained(tmp_path, gpt2(), Once(rows), risk="warn")
    assert "can be read only once" in forecast_of(run)["text"]
    assert len(list(run.train_dataset.rows)) >= 64 - 5 * 4  # four steps and what was fetched ahead


def test_a_configuration_with_a_name_does_not_make_weights_trained(tmp_path):
    model = gpt2()
    model.config.name_or_path = model.name_or_path = "somewhere"
    assert forecast_of(trained(tmp_path, model, risk="warn"))["plan"]["start"] == "initialised"


def test_a_loss_of_ones_own_does_not_make_weights_trained(tmp_path):
    class Tenth(RKSPTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) / 10

    run = trained(tmp_path, gpt2(), None, Tenth, risk="warn")
    assert forecast_of(run)["plan"]["start"] == "initialised"


def test_a_few_steps_make_weights_trained(tmp_path):
    run = trained(tmp_path, gpt2(), risk="warn", max_steps=60, learning_rate=3e-3)
    run.train()
    assert run.rksp.said.values["plan"]["start"] == "pretrained"


def test_a_second_training_can_be_told_too(tmp_path):
    run = trained(tmp_path, gpt2(), risk="warn")
    run.train()
    assert run.rksp.said.p_lost is not None, run.rksp.said.text


def test_a_mode_that_there_is_not_is_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(InputError, match="risk='STOP'"):
        trainer(tmp_path, gpt2(), None, RKSPTrainer, TrainingArguments, risk="STOP")


def test_the_number_of_steps_is_that_of_trainers_of_both_kinds():
    class Old:
        args = "arguments"

        def get_total_train_batch_size(self, args):
            return 8

        def set_initial_training_values(self, args, dataloader, total_train_batch_size):
            assert (args, dataloader, total_train_batch_size) == ("arguments", "loader", 8)
            return 1, 2, 40

    class New(Old):
        def set_initial_training_values(self, args, dataloader):
            return 1, 2, 50

    assert (_steps_of(Old(), "loader"), _steps_of(New(), "loader")) == (40, 50)
