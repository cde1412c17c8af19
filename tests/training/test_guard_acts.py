"""The guard acts: what it leaves out moves nothing, what it goes back to is healthy, and it ends a run that it cannot save."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from hf_rksp import DivergenceGuard, GuardConfig, KSSConfig, RKSPCallback, TrainingRun
from hf_rksp.doctor.mark import read_mark
from hf_rksp.errors import InputError, RunStoppedError
from hf_rksp.history.read import read_history
from tests.training.common import assert_same_weights, gpt2, hooks, token_rows, trainer, weights
from tests.training.test_alignment import batches

#: Nothing but the guard.
ALONE = {"kss": False, "spectrum": False}


class Faulty(GPT2LMHeadModel):
    """``fault(step, loss)`` may change the loss of a training pass."""

    calls, per_step = 0, 1

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        if self.training:
            output.loss = self.fault(self.calls // self.per_step, output.loss)
            self.calls += 1
        return output


def faulty(fault, dropout=0.0):
    model = gpt2(dropout)
    model.__class__ = Faulty
    model.fault = fault
    return model


def nan_at(*steps):
    return lambda step, loss: loss * math.nan if step in steps else loss


class Keeps(TrainerCallback):
    """Weights, optimizer and schedule at the beginning and at the end of each step."""

    def __init__(self):
        self.at = {}

    def _keep(self, where, state, model, optimizer, lr_scheduler):
        moments = [torch.cat([v.detach().reshape(-1).double() for v in s.values()]) for s in optimizer.state.values()]
        self.at[state.global_step, where] = (
            weights(model),
            moments,
            lr_scheduler.last_epoch,
            optimizer.param_groups[0]["lr"],
        )

    def on_step_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        self._keep("begin", state, model, optimizer, lr_scheduler)

    def on_step_end(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        self._keep("end", state, model, optimizer, lr_scheduler)


def assert_unmoved(before, after):
    for name in before[0]:
        assert torch.equal(before[0][name], after[0][name]), name
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    assert before[2:] == after[2:]


def run(folder, model, guard, rows=None, **changes):
    keeps, others = Keeps(), changes.pop("callbacks", [])
    settings = {**ALONE, "guard": guard, "max_steps": 8, "lr_scheduler_type": "linear", "warmup_steps": 2, **changes}
    one = trainer(folder, model, rows or token_rows(64), callbacks=[keeps, *others], **settings)
    before = hooks(model)
    try:
        one.train()
    finally:
        assert hooks(model) == before
        assert "gate" not in getattr(one.optimizer.step, "__qualname__", ""), "the gate is gone"
    return one, keeps


def done(folder):
    return [
        (row["what"], row["step"]) for row in read_history(folder).events if row["what"] not in ("alarm", "left_out")
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_nan_moves_nothing(tmp_path, accumulate):
    model = faulty(nan_at(3))
    model.per_step = accumulate
    one, keeps = run(
        tmp_path,
        model,
        "skip",
        token_rows(128),
        gradient_accumulation_steps=accumulate,
        optim="adamw_torch",
        weight_decay=0.1,
    )
    assert_unmoved(keeps.at[3, "begin"], keeps.at[4, "end"])
    assert keeps.at[4, "begin"][2] == 3 and keeps.at[5, "end"][2] == 4, "the schedule goes on afterwards"
    assert one.state.global_step == 8 and all(p.isfinite().all() for p in model.parameters())
    assert done(tmp_path) == [("left out", 3)]
    assert one.state.log_history[-2]["guard/left_out"] == 1


def test_one_gradient_that_is_not_finite_is_enough(tmp_path):
    model = gpt2(0.0)
    weight, calls = model.transformer.h[1].mlp.c_fc.weight, []

    def broken(grad):
        calls.append(0)
        if len(calls) == 5:
            grad = grad.clone()
            grad[0, 0] = math.nan
        return grad

    weight.register_hook(broken)
    _, keeps = run(tmp_path, model, "skip")
    assert_unmoved(keeps.at[4, "begin"], keeps.at[5, "end"])
    alarms = [row for row in read_history(tmp_path).events if row["what"] == "alarm"]
    assert alarms[0]["layer"] == "transformer.h.1.mlp.c_fc.weight"


def test_a_healthy_run_is_that_of_a_plain_trainer(tmp_path):
    """Guarded with every action; the same weights to the bit, with dropout."""
    guarded = gpt2()
    run(tmp_path / "a", guarded, "warn+skip+cut+rollback+stop", save_strategy="steps", save_steps=4)
    plain = gpt2()
    trainer(
        tmp_path / "b",
        plain,
        token_rows(64),
        Trainer,
        TrainingArguments,
        max_steps=8,
        lr_scheduler_type="linear",
        warmup_steps=2,
    ).train()
    assert_same_weights(guarded, plain)
    assert not done(tmp_path / "a")


def test_the_learning_rate_is_cut_and_given_back(tmp_path):
    rates = []

    class Rates(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = faulty(nan_at(3))
    sgd = Rates(model.parameters(), lr=0.01)
    run(
        tmp_path,
        model,
        "cut",
        optimizers=(sgd, None),
        guard_cut=0.25,
        guard_cooldown=2,
        lr_scheduler_type="constant",
        warmup_steps=0,
    )
    assert rates == [0.01] * 3 + [0.0025] * 2 + [0.01] * 2
    assert sgd.param_groups[0]["lr"] == 0.01
    assert done(tmp_path) == [("rate cut", 3), ("rate back", 6)]


def test_kss_is_switched_on(tmp_path):
    kept = {"kss_rank": 8, "kss_upper_threshold": 0.91}
    model, plain, always = faulty(nan_at(3)), faulty(nan_at(3)), faulty(nan_at(3))
    one, keeps = run(tmp_path / "a", model, "kss", **kept)
    _, other = run(tmp_path / "b", plain, "skip")
    run(tmp_path / "c", always, "skip", **{**kept, "kss": True})
    for name, value in keeps.at[4, "end"][0].items():
        assert torch.equal(value, other.at[4, "end"][0][name]), "asleep until the step that failed"
    assert not torch.equal(model.lm_head.weight, plain.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, always.lm_head.weight)
    assert done(tmp_path / "a") == [("KSS on", 3)]
    assert one.shaper is None and read_history(tmp_path / "a").logs[-1].get("kss/spectral_radius/max")


def test_the_run_goes_back_to_the_last_healthy_checkpoint(tmp_path):
    """Weights and moments are those of the checkpoint; steps and schedule go on; later batches are new ones."""
    settings = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2, "max_steps": 12, "logging_steps": 1}
    model = faulty(nan_at(7))
    one, keeps = run(tmp_path, model, "rollback", **settings)
    assert done(tmp_path) == [("rolled back", 7)]
    event = next(row for row in read_history(tmp_path).events if row["what"] == "rolled back")
    assert event["to"] == 4 and "checkpoint-4" in event["text"]
    back, there = keeps.at[8, "begin"], keeps.at[4, "end"]
    for name in there[0]:
        assert torch.equal(back[0][name], there[0][name]), name
    assert all(torch.equal(a, b) for a, b in zip(back[1], there[1], strict=True)), "moments"
    assert back[2] == keeps.at[7, "begin"][2] and back[3] == keeps.at[7, "begin"][3], (
        "the schedule goes on where it was"
    )
    assert one.state.global_step == 12
    marks = {step: read_mark(tmp_path / f"checkpoint-{step}") for step in (2, 4, 6, 8, 10, 12)}
    assert [marks[step].healthy for step in marks] == [True, True, False, True, True, None]
    assert "step 7 failed" in marks[6].why or "went back" in marks[6].why


def test_weights_that_are_broken_are_not_helped_by_leaving_steps_out(tmp_path):
    class Ruins(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 6:
                with torch.no_grad():
                    model.transformer.h[0].attn.c_attn.weight[0, 0] = math.nan

    model = gpt2(0.0)
    settings = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2, "callbacks": [Ruins()]}
    run(tmp_path, model, "skip+cut+rollback", **settings)
    assert done(tmp_path) == [("rolled back", 6)]
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_run_that_cannot_be_saved_is_stopped(tmp_path, caplog):
    model = faulty(lambda step, loss: loss * math.nan if step >= 5 else loss)
    with pytest.raises(RunStoppedError) as raised:
        run(tmp_path, model, "skip", guard_skips=2, run_report=True)
    assert raised.value.code == 6
    text = str(raised.value)
    assert "step 7" in text and "The loss is nan" in text and "left out 2 steps" in text and "rksp doctor" in text
    assert text in caplog.text
    assert done(tmp_path) == [("left out", 5), ("left out", 6), ("stopped", 7)]
    page = (tmp_path / "rksp_report.html").read_text()
    assert "The guard stopped the run at step 7" in page
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 8
    assert all(p.isfinite().all() for p in model.parameters()), "no step with NaN was made"


def test_a_stop_names_the_checkpoint_to_go_on_from(tmp_path):
    model = faulty(lambda step, loss: loss * math.nan if step >= 6 else loss)
    settings = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2, "guard_rollbacks": 1}
    with pytest.raises(RunStoppedError, match=r"gone back to a healthy checkpoint.*checkpoint-4: go on with") as raised:
        run(tmp_path, model, "rollback", **settings)
    text = str(raised.value)
    assert (
        f"resume_from_checkpoint={str(tmp_path / 'checkpoint-4')!r}" in text
        and "delete optimizer.pt and scheduler.pt" in text
    )


def test_a_new_learning_rate_of_a_resumed_run_is_said_to_do_nothing_and_does_something_as_advised(tmp_path, caplog):
    settings = {**ALONE, "guard": "warn", "save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    run(tmp_path, gpt2(0.0), **settings, learning_rate=1e-3)
    for rate, used, said in ((1e-3, 1e-3, False), (1e-4, 1e-3, True)):
        caplog.clear()
        one = trainer(tmp_path, gpt2(0.0), token_rows(64), **settings, learning_rate=rate)
        one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert ("learning_rate=0.0001 has no effect, the run goes on with 0.001" in caplog.text) is said
        assert one.optimizer.param_groups[0]["initial_lr"] == used
        assert read_history(tmp_path).run["setup"]["learning_rate"] == used
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / "checkpoint-4" / name).unlink()
    caplog.clear()
    one = trainer(tmp_path, gpt2(0.0), token_rows(64), **settings, learning_rate=1e-4)
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert one.optimizer.param_groups[0]["initial_lr"] == 1e-4 and "has no effect" not in caplog.text


def test_a_new_learning_rate_that_does_nothing_is_said_in_each_resumption(tmp_path, caplog):
    settings = {**ALONE, "guard": "warn", "save_strategy": "steps", "save_steps": 2}
    run(tmp_path, gpt2(0.0), **{**settings, "max_steps": 4}, learning_rate=1e-3)
    for step in (4, 6):
        caplog.clear()
        one = trainer(tmp_path, gpt2(0.0), token_rows(64), **settings, max_steps=step + 2, learning_rate=1e-4)
        one.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert "learning_rate=0.0001 has no effect" in caplog.text


@pytest.mark.parametrize("value", [False, "False", "false"])
def test_off_in_yaml_is_false(tmp_path, value):
    one = trainer(tmp_path, gpt2(), guard=value, risk=value, depth_warmup=value)
    assert one._the_guard is None and (one.args.risk, one.args.depth_warmup) == ("off", "off")


def test_a_new_run_takes_the_last_healthy_checkpoint(tmp_path, caplog):
    """And rotation has kept it, although newer ones have come."""
    model = faulty(lambda step, loss: loss * math.nan if step >= 5 else loss)
    settings = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2, "save_total_limit": 2, "max_steps": 10}
    one, _ = run(tmp_path, model, "warn", **settings)
    assert one.args.save_total_limit == 2
    kept = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert kept == [2, 10], "checkpoint-4 has seen one healthy step, and two are asked for"
    assert read_mark(tmp_path / "checkpoint-10").healthy is False
    saved = torch.load(tmp_path / "checkpoint-10" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 2
    again = trainer(tmp_path, faulty(nan_at()), token_rows(64), **ALONE, guard="warn", **settings)
    again.train(resume_from_checkpoint=True)
    assert "goes on from" in caplog.text and "checkpoint-10 (weights not finite" in caplog.text
    assert all(p.isfinite().all() for p in again.model.parameters()) and again.state.global_step == 10


@pytest.mark.parametrize("fault", ["cut", "no state", "cut state", "NaN", "empty"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, caplog, fault):
    settings = {"save_strategy": "steps", "save_steps": 2, **ALONE, "guard": "warn", "max_steps": 6}
    trainer(tmp_path, gpt2(0.0), token_rows(64), **settings).train()
    newest = tmp_path / "checkpoint-6"
    file = newest / "model.safetensors"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif fault == "empty":
        (newest / "optimizer.pt").write_bytes(b"")
    elif fault == "no state":
        (newest / "trainer_state.json").unlink()
        (newest / "rksp_health.json").unlink()
    elif fault == "cut state":
        (newest / "trainer_state.json").write_text('{"global_step": 6, "log_his')
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        tensors["transformer.wte.weight"][0, 0] = math.nan
        save_file(tensors, file, {"format": "pt"})
    again = trainer(tmp_path, gpt2(0.0), token_rows(64), **{**settings, "max_steps": 8})
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-4" in caplog.text and "checkpoint-6 (" in caplog.text
    assert again.state.global_step == 8 and all(p.isfinite().all() for p in again.model.parameters())


def test_no_healthy_checkpoint_is_an_error(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, **ALONE, "guard": "warn"}
    trainer(tmp_path, faulty(nan_at(0)), token_rows(64), **settings).train()
    with pytest.raises(
        InputError, match=r"resume_from_checkpoint=True: no checkpoint in .* is healthy: checkpoint-4 \(weights not"
    ):
        trainer(tmp_path, gpt2(0.0), token_rows(64), **settings).train(resume_from_checkpoint=True)


def test_state_goes_on_after_a_resumption(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, **ALONE, "guard": "skip", "guard_skips": 2, "max_steps": 8}

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    trainer(tmp_path, faulty(nan_at(1, 2)), token_rows(64), callbacks=[Ends()], **settings).train()
    with pytest.raises(RunStoppedError, match="left out 2 steps"):
        trainer(tmp_path, faulty(nan_at(1)), token_rows(64), **settings).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guard": "kss", "kss": True}, "KSS is on from the first step"),
        ({"guard": "rollback"}, "no checkpoint with moments"),
        ({"guard": "rollback", "save_strategy": "steps", "save_only_model": True}, "no checkpoint with moments"),
    ],
)
def test_an_action_that_cannot_be_taken_is_refused_at_the_start(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, gpt2(), **{**ALONE, **changes}).train()


def test_settings_are_checked_with_the_arguments(tmp_path):
    for wrong, words in (
        ({"guard": "jump"}, "guard='jump'"),
        ({"guard_cut": 2.0}, "guard_cut=2.0"),
        ({"guard_loss": -1}, "guard_loss="),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, gpt2(), **{**ALONE, **wrong})


def test_a_callback_alone_may_only_warn(tmp_path):
    callback = RKSPCallback(False, monitors=[DivergenceGuard(GuardConfig("skip"))])
    one = trainer(tmp_path, gpt2(), None, Trainer, TrainingArguments, callbacks=[callback])
    with pytest.raises(InputError, match="RKSPCallback alone"):
        one.train()


def test_by_default_it_warns_if_there_is_another_part(tmp_path):
    assert trainer(tmp_path, gpt2(), **ALONE).rksp is None
    assert trainer(tmp_path, gpt2())._the_guard.config.chosen == ("warn",)
    assert trainer(tmp_path, gpt2(), guard="off")._the_guard is None
    assert trainer(tmp_path, gpt2(), **ALONE, guard="warn")._the_guard is not None


def own_loop(folder, model, data, config, kss=None, rewind=None, save=None, **changes):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, len(data))
    found = []
    with TrainingRun(
        model,
        folder,
        len(data),
        [DivergenceGuard(config)],
        kss,
        optimizer=optimizer,
        rewind=rewind and (lambda to: rewind(to, optimizer)),
    ) as run_:
        for step, batch in enumerate(data):
            loss = model(**batch).loss
            (loss + run_.term()).backward()
            run_.gradients_ready()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(weights(model))
            run_.step(loss=loss.item())
            if save and (step + 1) % save == 0:
                place = Path(folder, f"checkpoint-{step + 1}")
                place.mkdir()
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, place / "all.pt")
                run_.saved(place)
    return found


def test_in_a_loop_of_your_own(tmp_path):
    model = faulty(nan_at(4)).train()
    found = own_loop(tmp_path, model, batches(token_rows(32).rows), GuardConfig("skip"))
    assert all(torch.equal(found[3][name], found[4][name]) for name in found[3])
    assert not all(torch.equal(found[4][name], found[5][name]) for name in found[4])
    assert done(tmp_path) == [("left out", 4)]


def test_a_loop_of_your_own_goes_back(tmp_path):
    model = faulty(nan_at(7)).train()

    def rewind(to, optimizer):
        kept = torch.load(to / "all.pt")
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])

    config = GuardConfig("rollback", healthy=2)
    own_loop(tmp_path, model, batches(token_rows(48).rows), config, rewind=rewind, save=2)
    assert done(tmp_path) == [("rolled back", 7)]
    assert read_mark(tmp_path / "checkpoint-4").healthy and read_mark(tmp_path / "checkpoint-6").healthy is False


def test_a_loop_without_its_optimizer_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match="optimizer="),
        TrainingRun(gpt2().train(), tmp_path, 3, [DivergenceGuard(GuardConfig("skip"))]),
    ):
        pass


def test_kss_sleeps_in_a_loop_of_your_own(tmp_path):
    kss = KSSConfig(rank=8, upper_threshold=0.91)
    model = faulty(nan_at(3)).train()
    own_loop(tmp_path, model, batches(token_rows(32).rows), GuardConfig("kss"), kss)
    assert done(tmp_path) == [("KSS on", 3)]


def test_the_loss_of_a_trainer_is_a_mean_however_it_is_scaled(tmp_path, monkeypatch):
    seen = {}
    for accumulate in (1, 2):
        found = seen.setdefault(accumulate, [])
        monkeypatch.setattr(
            "hf_rksp.training.guard.judge.Judge.judge",
            lambda self, loss, norm, update, found=found: found.append(loss) or [],
        )
        settings = {**ALONE, "guard": "skip", "learning_rate": 0.0, "max_steps": 2}
        batch = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 4 // accumulate}
        one = trainer(tmp_path / str(accumulate), gpt2(0.0), token_rows(32), **settings, **batch)
        one.train()
        logged = [row["loss"] for row in one.state.log_history if "loss" in row]
        assert found == pytest.approx(logged, abs=1e-4)
    assert seen[1] == pytest.approx(seen[2], rel=1e-5)


def test_alarms_of_monitors_fail_a_step_if_that_is_asked_for(tmp_path):
    from hf_rksp.training.monitors.base import Alarm, Monitor, Reading

    class Cries(Monitor):
        name = "cries"

        def due(self, step, last_step):
            return step == 3

        def step_end(self, step, main_process):
            return Reading("cries", step, {}, alarms=[Alarm("wolf", "A wolf.")])
            yield []

    model = gpt2(0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = batches(token_rows(32).rows)
    with TrainingRun(
        model, tmp_path, len(data), [Cries(), DivergenceGuard(GuardConfig("skip", alarms=True))], optimizer=optimizer
    ) as run_:
        for batch in data:
            model(**batch).loss.backward()
            run_.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run_.step()
    assert done(tmp_path) == [("left out", 4)]


@pytest.mark.parametrize("how", ["os", "text"])
def test_a_full_disk_costs_the_checkpoint_alone(tmp_path, monkeypatch, how):
    import errno

    import transformers.trainer as module

    true, calls = module.torch.save, []

    def save(data, file, *args, **kwargs):
        if str(file).endswith("optimizer.pt"):
            calls.append(file)
            if len(calls) == 2:
                Path(file).write_bytes(b"half")
                raise (
                    OSError(errno.ENOSPC, "No space left on device")
                    if how == "os"
                    else RuntimeError("No space left on device")
                )
        return true(data, file, *args, **kwargs)

    monkeypatch.setattr(module.torch, "save", save)
    settings = {"save_strategy": "steps", "save_steps": 2}
    one, _ = run(tmp_path, gpt2(0.0), "skip", **settings)
    assert one.state.global_step == 8
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-6",
        "checkpoint-8",
    ]
    assert done(tmp_path) == [("not saved", 4)]
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        calls.clear()
        run(tmp_path / "warn", gpt2(0.0), "warn", **settings)


def test_an_adapter_goes_back(tmp_path):
    from peft import LoraConfig, get_peft_model

    inner = faulty(nan_at(7))
    model = get_peft_model(inner, LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False))
    settings = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2, "max_steps": 10}
    _, keeps = run(tmp_path, model, "rollback", **settings)
    assert done(tmp_path) == [("rolled back", 7)]
    there = {name: value for name, value in keeps.at[4, "end"][0].items() if "lora" in name}
    assert there and all(torch.equal(keeps.at[8, "begin"][0][name], value) for name, value in there.items())
    assert not any(torch.equal(model.state_dict()[name], value) for name, value in there.items()), "and trains on"


def test_in_a_search_over_hyperparameters_each_trial_has_its_own_checkpoints(tmp_path):
    settings = {
        **ALONE,
        "guard": "rollback",
        "guard_healthy": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 8,
    }
    one = trainer(
        tmp_path, None, token_rows(64), model_init=lambda: faulty(nan_at(7)), eval_dataset=token_rows(8), **settings
    )
    one.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        compute_objective=lambda metrics: 0.0,
        n_trials=1,
        backend="optuna",
    )
    (history,) = tmp_path.glob("rksp_history*.jsonl")
    assert [(row["what"], row.get("to")) for row in read_history(history).events if row["what"] == "rolled back"] == [
        ("rolled back", 4)
    ]
