"""The guard in real runs: it changes nothing, sees what filters hide, names the weight, and does not repeat itself."""

import json
import math

import pytest
import torch
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from hf_rksp import DivergenceGuard, GuardConfig, RKSPCallback, TrainingRun
from hf_rksp.history.read import read_history
from tests.training.common import assert_same_weights, gpt2, hooks, token_rows, trainer
from tests.training.test_alignment import batches


class Breaking(GPT2LMHeadModel):
    """Its loss is NaN, or its gradient at one weight, from a step on."""

    broken_at, times = 10**9, 1
    calls = 0

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        self.calls += self.training
        if self.broken_at < self.calls <= self.broken_at + self.times:
            output.loss = output.loss * math.nan
        return output


def breaking(at, times=1):
    model = gpt2(0.0)
    model.__class__ = Breaking
    model.broken_at, model.times = at, times
    return model.train()


def loop(folder, model, data, guard=True, cut=1, state=None, stop=None, config=None, lr=1e-3, change=None):
    before = hooks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    parts = [DivergenceGuard(config)] if guard else []
    with TrainingRun(model, folder, len(data), parts, state=state) as run:
        while run.step_number < (stop or len(data)):
            batch = data[run.step_number]
            for place in range(cut):
                if place:
                    run.microbatch()
                (model(**{name: value.chunk(cut)[place] for name, value in batch.items()}).loss / cut).backward()
            if change is not None:
                change(model, run.step_number)
            run.gradients_ready()
            if all(weight.grad.isfinite().all() for weight in model.parameters()):  # NaN times 0 is NaN
                optimizer.step()
            optimizer.zero_grad()
            logs = run.step()
        state = json.loads(json.dumps(run.state_dict()))
    assert hooks(model) == before
    return [row for row in read_history(folder).events if row["what"] == "alarm"], logs, state


def test_a_run_is_the_same_with_it_and_without(tmp_path):
    data, models = batches(token_rows(40).rows), [gpt2().train(), gpt2().train()]
    for model, guard in zip(models, (True, False), strict=True):
        torch.manual_seed(1)
        events, logs, _ = loop(tmp_path / str(guard), model, data, guard)
        assert not events and "guard/failing" not in logs
    assert_same_weights(*models)


def test_a_loss_that_is_not_finite_is_said_with_the_weights(tmp_path):
    events, logs, _ = loop(tmp_path, breaking(5), batches(token_rows(32).rows), lr=0.0)
    assert [(row["rule"], row["step"]) for row in events] == [("loss not finite", 5), ("gradient norm not finite", 5)]
    assert "The loss is nan" in events[0]["text"]
    assert "transformer.wte.weight, transformer.wpe.weight" in events[1]["text"] and "more." in events[1]["text"]
    assert logs["guard/failing"] == 1


def test_the_weight_whose_gradient_breaks_is_named(tmp_path):
    def broken(model, step):
        if step == 4:
            model.transformer.h[1].mlp.c_fc.weight.grad[0, 0] = math.inf

    events, *_ = loop(tmp_path, gpt2(0.0).train(), batches(token_rows(32).rows), change=broken, lr=0.0)
    assert [(row["rule"], row["step"], row["layer"]) for row in events] == [
        ("gradient norm not finite", 4, "transformer.h.1.mlp.c_fc.weight")
    ]


def test_a_run_that_stays_broken_is_said_once_in_a_while(tmp_path):
    config = GuardConfig(cooldown=5)
    events, logs, _ = loop(tmp_path, breaking(3, 100), batches(token_rows(64).rows), config=config, lr=0.0)
    assert [row["step"] for row in events if row["rule"] == "loss not finite"] == [3]
    assert logs["guard/failing"] == 13


def test_the_last_step_is_judged_too(tmp_path):
    events, logs, _ = loop(tmp_path, breaking(7), batches(token_rows(32).rows))
    assert [row["step"] for row in events] == [7, 7] and logs["guard/failing"] == 1


@pytest.mark.parametrize("cut", [1, 2])
def test_the_loss_is_the_mean_over_the_batches_of_a_step(tmp_path, cut, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hf_rksp.training.guard.judge.Judge.judge", lambda self, loss, norm, update: seen.append((loss, norm)) or []
    )
    loop(tmp_path, gpt2(0.0).train(), batches(token_rows(16).rows), cut=cut)
    model, data = gpt2(0.0).train(), batches(token_rows(16).rows)
    loss = model(**data[0]).loss
    loss.backward()
    loss = loss.detach()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()])
    assert len(seen) == 4
    assert seen[0][0] == pytest.approx(float(loss), rel=1e-5) and seen[0][1] == pytest.approx(float(norm), rel=1e-5)


def test_a_resumed_run_goes_on(tmp_path):
    data = batches(token_rows(64).rows)
    model = breaking(3, 100)
    _, _, state = loop(tmp_path, model, data, stop=8, lr=0.0)
    _, logs, _ = loop(tmp_path, model, data, state=state, lr=0.0)
    assert logs["guard/failing"] == 13, "the step before the checkpoint is judged too"


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_in_a_trainer_what_its_log_hides_is_an_event(tmp_path, kind):
    callback = RKSPCallback(False, monitors=[DivergenceGuard()])
    more = {"kss": False} if kind == "trainer" else {}
    one = trainer(
        tmp_path, breaking(2), token_rows(32), *(() if kind == "trainer" else (Trainer, TrainingArguments)),
        callbacks=[callback], max_steps=6, logging_steps=1, learning_rate=0.0, **more,
    )  # fmt: skip
    one.train()
    logged = [row for row in one.state.log_history if "loss" in row]
    assert all(math.isfinite(row["loss"]) for row in logged), "the filter hides it"
    events = [row for row in read_history(tmp_path).events if row["what"] == "alarm"]
    assert {row["rule"] for row in events} >= {"loss not finite"} and events[0]["step"] == 2
    assert any(row.get("guard/failing") for row in logged)


def test_the_norm_is_that_before_clipping(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hf_rksp.training.guard.judge.Judge.judge", lambda self, loss, norm, update: seen.append(norm) or []
    )
    callback = RKSPCallback(False, monitors=[DivergenceGuard()])
    one = trainer(
        tmp_path, gpt2(0.0), token_rows(32), kss=False, callbacks=[callback], max_grad_norm=1e-3, logging_steps=1
    )
    one.train()
    logged = [row["grad_norm"] for row in one.state.log_history if "grad_norm" in row]
    assert seen == pytest.approx(logged, rel=1e-5) and min(seen) > 1e-2
