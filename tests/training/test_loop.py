"""A loop of one's own has what Trainer has: the same readings, the same history, nothing left behind."""

import json

import pytest
import torch

from hf_rksp import KSSConfig, MonitorConfig
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import SpectralMonitor, TrainingRun
from tests.training.common import assert_same_weights, gpt2, hooks, padded_rows

STEPS = 4


def batches():
    rows = padded_rows(4 * STEPS).rows
    return [
        {name: torch.stack([row[name] for row in rows[i : i + 4]]) for name in rows[0]} for i in range(0, 4 * STEPS, 4)
    ]


def loop(folder, kss=None, monitors=True, steps=STEPS, state=None, model=None, optimizer=None, cut=1, stop=STEPS):
    """Train; the model, and the last state."""
    model = model or gpt2(dropout=0.0).train()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [SpectralMonitor(MonitorConfig(every=2, rank=8))] if monitors else []
    with TrainingRun(model, folder, steps, parts, kss, setup={"name": "own"}, state=state) as run:
        while run.step_number < stop:
            batch = batches()[run.step_number]
            for place in range(cut):
                if place:
                    run.microbatch()
                part = {name: value.chunk(cut)[place] for name, value in batch.items()}
                loss = model(**part).loss / cut
                (loss + run.term() / cut).backward()
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step(loss=float(loss.detach()))
        state = run.state_dict()
    assert hooks(model) == 0
    return model, optimizer, state


def test_monitors_change_nothing_and_keep_a_history(tmp_path):
    watched, *_ = loop(tmp_path)
    plain, *_ = loop(tmp_path / "plain", monitors=False)
    assert_same_weights(watched, plain)
    history = read_history(tmp_path)
    assert [row["step"] for row in history.spectra] == [0, 2, 3] and [row["step"] for row in history.logs] == [
        1,
        2,
        3,
        4,
    ]
    assert history.name == "own" and history.quantities["spectrum/near_unit_mass/max"].unit == "share"
    assert all("loss" in row for row in history.logs)


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_kss_acts(tmp_path, schedule):
    kss = KSSConfig(schedule, rank=8, every=1, upper_threshold=0.91)
    shaped, *_ = loop(tmp_path, kss)
    plain, *_ = loop(tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same_weights(shaped, plain)
    assert all(row["kss/layers_above"] == 1 for row in read_history(tmp_path).logs)


def test_all_microbatches_are_in_a_reading(tmp_path):
    loop(tmp_path, cut=2)
    whole = [int(batch["attention_mask"].sum()) for batch in batches()]
    assert [row["tokens"] for row in read_history(tmp_path).spectra] == [whole[0], whole[2], whole[3]]


def test_a_resumed_loop_is_the_uninterrupted_one(tmp_path):
    kss = KSSConfig(rank=8, upper_threshold=0.91)
    whole, *_ = loop(tmp_path / "whole", kss)
    model, optimizer, state = loop(tmp_path / "cut", kss, stop=2)
    state = json.loads(json.dumps(state))
    resumed, *_ = loop(tmp_path / "cut", kss, model=model, optimizer=optimizer, state=state)
    assert_same_weights(whole, resumed)
    one, other = read_history(tmp_path / "whole"), read_history(tmp_path / "cut")
    assert one.logs == other.logs and one.readings == other.readings
    assert [event["what"] for event in other.events] == ["resume"]


def test_an_error_ends_the_run_and_is_an_event(tmp_path):
    model = gpt2().train()
    with pytest.raises(ZeroDivisionError), TrainingRun(model, tmp_path, STEPS, [SpectralMonitor()]):
        raise ZeroDivisionError("planned")
    (event,) = read_history(tmp_path).events
    assert event["what"] == "error" and "ZeroDivisionError: planned" in event["text"] and hooks(model) == 0


def test_a_run_that_is_not_open_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="with statement"):
        TrainingRun(gpt2(), tmp_path, STEPS).step()


def test_a_loop_that_goes_on_after_its_steps_is_watched(tmp_path, caplog):
    """The first step behind them is over before anybody knows."""
    loop(tmp_path, steps=1)
    assert caplog.text.count("goes on after steps=1") == 1
    assert [row["step"] for row in read_history(tmp_path).spectra] == [0, 2]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_are_none_are_refused(tmp_path, steps):
    with pytest.raises(InputError, match="steps="):
        TrainingRun(gpt2(), tmp_path, steps)
