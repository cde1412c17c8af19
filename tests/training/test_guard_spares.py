"""What the guard must not do: fail healthy steps, leave traces of a step that it has left out, take what another run has saved."""

import json
import math
import shutil

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_rksp import DivergenceGuard, GuardConfig, RKSPCallback, RKSPTrainer, TrainingRun
from hf_rksp.doctor.mark import read_mark
from hf_rksp.errors import InputError, RunStoppedError
from hf_rksp.history.read import read_history
from hf_rksp.training.guard.numbers import Update, gradient_numbers
from tests.training.common import gpt2, hooks, token_rows, trainer, weights
from tests.training.test_alignment import batches
from tests.training.test_guard_acts import ALONE, done, faulty, nan_at, run

SAVES = {"save_strategy": "steps", "save_steps": 2, "guard_healthy": 2}


def left(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def guard_of(one):
    return next(part for part in one.rksp.monitors if isinstance(part, DivergenceGuard))


def test_a_learning_rate_that_rises_again_is_no_sign(tmp_path):
    """Updates are as large as the rate makes them."""
    settings = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}, "max_steps": 110}
    one, _ = run(tmp_path, gpt2(0.0), "skip", token_rows(440), warmup_steps=0, learning_rate=2e-3, **settings)
    assert guard_of(one).failing == 0 and one.state.global_step == 110


def test_a_rate_that_is_given_back_is_no_sign(tmp_path):
    settings = {"max_steps": 90, "lr_scheduler_type": "constant", "guard_cooldown": 20}
    one, _ = run(tmp_path, faulty(nan_at(50)), "cut", token_rows(360), warmup_steps=0, **settings)
    assert guard_of(one).failing == 1 and done(tmp_path) == [("rate cut", 50), ("rate back", 71)]


def test_a_rare_token_is_no_sign():
    """The update of an embedding lies in few rows; the estimate must not hang on which."""
    torch.manual_seed(0)
    embedding = nn.Parameter(torch.zeros(8192, 16))
    moves = Update({"embedding": embedding})
    ratios = []
    for _ in range(30):
        rows = torch.randint(0, 8192, (600,)).unique()
        if len(ratios) == 20:
            rows = torch.cat([rows, torch.arange(4090, 4100)])  # in the middle
        moves.begin()
        with torch.no_grad():
            embedding[rows] += 1.0
        ratios.append(float(moves.end()) / (16 * len(rows)))
    assert all(0.5 < ratio < 2 for ratio in ratios) and abs(sum(ratios) / 30 - 1) < 0.1


def test_a_run_that_moves_to_another_level_is_not_stopped(tmp_path):
    """Sorted data, or a curriculum: ten steps are left out at most, and after 32 the level is the new one."""
    model = faulty(lambda step, loss: loss + 3.0 if step >= 50 else loss)
    one, _ = run(tmp_path, model, "skip", token_rows(480), max_steps=110, guard_norm=1e6)
    assert one.state.global_step == 110 and guard_of(one)._left_out == 10
    failing = guard_of(one).failing
    assert failing < 40, "the new level is healthy in the end"


class Normed(nn.Module):
    """Residual blocks whose BatchNorm keeps running means."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 16)) for _ in range(2))
        for block in self.blocks:
            block.forward = lambda x, block=block: x + block[1](block[0](x).relu())
        self.head = nn.Linear(16, 2)

    def forward(self, x, labels=None):
        state = self.inner(x)
        for block in self.blocks:
            state = block(state)
        logits = self.head(state)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Bad(RKSPTrainer):
    """One batch is NaN."""

    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 3:
            inputs = dict(inputs, x=inputs["x"] * math.nan)
        return super().training_step(model, inputs, *args, **kwargs)


def normed(folder, guard, **changes):
    from hf_rksp import RKSPTrainingArguments

    rows = [{"x": torch.randn(8), "labels": torch.tensor(i % 2)} for i in range(64)]
    settings = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "run_report": False, "remove_unused_columns": False, **ALONE, "guard": guard, **SAVES, **changes,
    }  # fmt: skip
    model = Normed()
    return model, Bad(model, RKSPTrainingArguments(**settings), train_dataset=rows, blocks="blocks")


def test_a_step_that_is_left_out_leaves_running_means_as_they_were(tmp_path):
    model, one = normed(tmp_path, "skip")
    one.train()
    means = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    counts = [int(module.num_batches_tracked) for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert all(mean.isfinite().all() for mean in means) and counts == [5, 5]


def test_a_checkpoint_with_broken_running_means_is_ill(tmp_path):
    model, one = normed(tmp_path, "warn", guard_healthy=1)
    model.blocks[0][0].running_mean[0] = math.nan  # before the run: somebody has wanted it so
    one.train()
    assert read_mark(tmp_path / "checkpoint-2").healthy is not False
    guard = guard_of(one)
    assert [name for name in guard._buffers.finite if "mean" in name] == ["blocks.1.0.running_mean"]
    assert "weights not finite" in read_mark(tmp_path / "checkpoint-6").why


def test_broken_running_means_alone_make_a_checkpoint_ill(tmp_path):
    model, one = normed(tmp_path, "warn", max_steps=2)

    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            model.blocks[1][0].running_var.fill_(math.inf)

    one.add_callback(Breaks())
    one.train()
    assert read_mark(tmp_path / "checkpoint-2").why == "weights not finite: blocks.1.0.running_var"


def test_a_run_in_a_folder_with_an_old_run_keeps_what_it_saves(tmp_path):
    run(tmp_path, gpt2(0.0), "warn", max_steps=8, **SAVES)
    run(tmp_path, gpt2(0.0, seed=1), "warn", max_steps=4, save_total_limit=1, **SAVES)
    assert max(left(tmp_path)) == 4 or read_mark(tmp_path / "checkpoint-4") is not None
    assert 4 in left(tmp_path) and len(left(tmp_path)) <= 2


def test_the_guard_does_not_go_back_to_another_run(tmp_path):
    run(tmp_path, gpt2(0.0), "warn", max_steps=8, **SAVES)
    with pytest.raises(RunStoppedError, match="No checkpoint is marked as healthy"):
        run(tmp_path, faulty(nan_at(7)), "rollback", **{**SAVES, "save_steps": 100})


def test_a_run_that_was_gone_on_with_keeps_its_new_checkpoints(tmp_path):
    """Beside an ill one of a higher step."""
    broken = faulty(lambda step, loss: loss * math.nan if step >= 5 else loss)
    settings = {**SAVES, "save_total_limit": 2}
    run(tmp_path, broken, "warn", max_steps=10, **settings)
    assert left(tmp_path) == [2, 10]
    again = trainer(tmp_path, gpt2(0.0), token_rows(64), **ALONE, guard="warn", max_steps=8, **settings)
    again.train(resume_from_checkpoint=True)
    assert 8 in left(tmp_path) and 10 not in left(tmp_path)


def test_a_second_run_of_one_trainer_keeps_what_it_saves(tmp_path):
    one, _ = run(tmp_path, gpt2(0.0), "warn", max_steps=8, save_total_limit=1, **SAVES)
    shutil.rmtree(tmp_path / "checkpoint-8")
    one.args.max_steps = 4
    one.train()
    assert 4 in left(tmp_path)


def test_what_a_stop_names_is_what_a_new_run_takes(tmp_path):
    model = faulty(nan_at(*range(5, 100)))
    settings = {**SAVES, "guard_skips": 2}
    with pytest.raises(RunStoppedError, match="checkpoint-2: go on with") as stopped:
        run(tmp_path, model, "skip", **settings)
    assert f"rksp doctor {tmp_path}" in str(stopped.value)
    again = trainer(tmp_path, gpt2(0.0), token_rows(64), **ALONE, guard="skip", max_steps=4, **settings)
    assert again._healthy_checkpoint() == str(tmp_path / "checkpoint-2")
    assert read_mark(tmp_path / "checkpoint-4").why.startswith("the run was stopped")


def test_by_default_a_run_goes_on_from_an_ill_checkpoint_if_there_is_no_other(tmp_path, caplog):
    """Nobody has asked for verdicts; but broken weights are no checkpoint."""
    settings = {"kss": False, "spectrum_every": 100, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer(tmp_path, gpt2(0.0), token_rows(64), **settings).train()
    for folder in tmp_path.glob("checkpoint-*"):
        mark = json.loads((folder / "rksp_health.json").read_text())
        (folder / "rksp_health.json").write_text(json.dumps({**mark, "healthy": False, "why": "step 3 failed"}))
    again = trainer(tmp_path, gpt2(0.0), token_rows(64), **{**settings, "max_steps": 6})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and "checkpoint-4 (step 3 failed)" in caplog.text


def test_checkpoints_that_do_not_live_long_enough_are_refused(tmp_path):
    settings = {**SAVES, "save_total_limit": 1, "guard_healthy": 3}
    with pytest.raises(InputError, match=r"deleted after 2 steps.*guard_healthy=2"):
        run(tmp_path, gpt2(0.0), "rollback", **settings)
    run(tmp_path, gpt2(0.0), "skip", **settings)


class Plain(nn.Module):
    """Without residual blocks; NaN in the third step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.calls = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), 0

    def forward(self, x, labels=None):
        logits = self.body(x)
        self.calls += self.training
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss * math.nan if self.calls == 3 else loss, "logits": logits}


@pytest.mark.parametrize("driven", [True, False])
def test_a_guard_needs_no_residual_blocks(tmp_path, driven, caplog):
    from transformers import Trainer, TrainingArguments

    from hf_rksp import RKSPTrainingArguments

    rows = [{"x": torch.randn(8), "labels": torch.tensor(i % 2)} for i in range(64)]
    settings = {
        "output_dir": str(tmp_path), "max_steps": 6, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "remove_unused_columns": False, "save_strategy": "no",
    }  # fmt: skip
    model = Plain()
    if driven:
        arguments = RKSPTrainingArguments(**settings, **ALONE, guard="skip", run_report=False)
        RKSPTrainer(model, arguments, train_dataset=rows).train()
        assert done(tmp_path) == [("left out", 2)]
        assert all(weight.isfinite().all() for weight in model.parameters())
    else:
        watch = RKSPCallback(False, monitors=[DivergenceGuard()], report=False)
        Trainer(model, TrainingArguments(**settings), train_dataset=rows, callbacks=[watch]).train()
        assert ("alarm", 2) in [(row["what"], row["step"]) for row in read_history(tmp_path).events]
    assert "The guard watches it all the same" in caplog.text


def test_a_step_that_a_scaler_skips_by_itself(tmp_path):
    """The next one is made, and with the scaler given the overflow is no failing step."""
    for given in (True, False):
        model = gpt2(0.0).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        made: list[int] = []
        optimizer.register_step_post_hook(lambda *args, made=made: made.append(1))
        guard = DivergenceGuard(GuardConfig("skip"))
        data = batches(token_rows(32).rows)
        keyword = {"scaler": scaler} if given else {}
        with TrainingRun(model, tmp_path / str(given), len(data), [guard], optimizer=optimizer, **keyword) as loop:
            for step, batch in enumerate(data):
                scaler.scale(model(**batch).loss).backward()
                if step == 3:
                    next(model.parameters()).grad[0, 0] = math.inf
                scaler.unscale_(optimizer)
                loop.gradients_ready()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                loop.step()
        assert len(made) == len(data) - 1 and guard.failing == (0 if given else 1)


def test_gradients_that_are_sparse():
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 2, 2])).sum().backward()
    numbers = gradient_numbers(dict(embedding.named_parameters()))
    assert numbers.tolist() == pytest.approx([4 + 4 * 4, 0])


def test_weights_that_are_unfrozen_later_are_seen(tmp_path):
    model = gpt2(0.0).train()
    last = model.transformer.h[2]
    last.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    guard, data = DivergenceGuard(GuardConfig("skip")), batches(token_rows(32).rows)
    with TrainingRun(model, tmp_path, len(data), [guard], optimizer=optimizer) as loop:
        for step, batch in enumerate(data):
            if step == 2:
                last.requires_grad_(True)
            model(**batch).loss.backward()
            if step == 4:
                last.mlp.c_fc.weight.grad[0, 0] = math.nan
            loop.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            loop.step()
    (event,) = [row for row in read_history(tmp_path).events if row["what"] == "left out"]
    assert event["step"] == 4 and "transformer.h.2.mlp.c_fc.weight" in event["text"]


class Ends(TrainerCallback):
    """Ends the run early, and notes what it is told."""

    def __init__(self, at=None):
        self.at, self.saves, self.ends = at, [], 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self.saves.append(state.global_step)

    def on_train_end(self, *args, **kwargs):
        self.ends += 1


def test_the_last_step_is_judged_if_a_run_ends_early(tmp_path):
    run(tmp_path, faulty(nan_at(3)), "warn", callbacks=[Ends(4)])
    assert ("alarm", 3) in [(row["what"], row["step"]) for row in read_history(tmp_path).events]


def test_other_callbacks_are_told_of_a_stop(tmp_path):
    ends = Ends()
    with pytest.raises(RunStoppedError):
        run(tmp_path, faulty(nan_at(*range(100))), "stop", callbacks=[ends])
    assert ends.ends == 1


def test_a_stop_that_cannot_write_the_state_is_a_stop(tmp_path, caplog):
    (tmp_path / "trainer_state.json").symlink_to("/dev/full")
    with pytest.raises(RunStoppedError):
        run(tmp_path, faulty(nan_at(*range(100))), "stop", run_report=True)
    assert "trainer_state.json was not written" in caplog.text and (tmp_path / "rksp_report.html").exists()


def test_a_checkpoint_that_was_not_saved_is_told_to_nobody(tmp_path, monkeypatch):
    ends, answers = Ends(), iter([False, True, False, False])
    monkeypatch.setattr("hf_rksp.training.checkpoints.lacks_room", lambda folder: next(answers))
    run(tmp_path, gpt2(0.0), "skip", callbacks=[ends], **SAVES)
    assert ends.saves == [2, 6, 8] == left(tmp_path)


def test_after_a_guard_the_schedule_moves_again(tmp_path):
    one, _ = run(tmp_path, faulty(nan_at(7)), "skip")
    one.remove_callback(one.rksp)
    one.rksp = None
    rates = []

    class Rates(TrainerCallback):
        def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
            rates.append(lr_scheduler.last_epoch)

    one.add_callback(Rates())
    one.train()
    assert rates == list(range(1, 9))


def test_a_search_goes_on_after_a_trial_that_was_stopped(tmp_path):
    trials = []

    def model_init():
        trials.append(1)
        return faulty(nan_at(*range(100)) if len(trials) == 2 else nan_at())

    one = trainer(
        tmp_path, None, token_rows(64), model_init=model_init, eval_dataset=token_rows(8), **ALONE, guard="stop"
    )
    search = {"compute_objective": lambda metrics: metrics["eval_loss"], "n_trials": 3, "backend": "optuna"}
    one.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)}, **search
    )
    assert len(trials) >= 3


def test_a_window_of_another_size_loses_the_past_alone(tmp_path, caplog):
    guard = DivergenceGuard(GuardConfig("skip+cut", window=64))
    other = DivergenceGuard(GuardConfig("skip+cut", window=32))
    model = gpt2(0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingRun(model, tmp_path, 4, [guard], optimizer=optimizer):
        guard.ladder.take(1)
        state = json.loads(json.dumps(guard.state_dict()))
    other._forget()
    other.load_state_dict(state)
    assert other.ladder.used["skip"] == 1 and "of another guard_window" in caplog.text


def test_a_state_that_cannot_be_read_leaves_a_guard_that_goes_on(tmp_path):
    guard, model = DivergenceGuard(GuardConfig("skip")), gpt2(0.0).train()
    before = hooks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingRun(model, tmp_path, 4, [guard], optimizer=optimizer) as watched:
        with pytest.raises(KeyError):
            guard.load_state_dict({})
        for _ in range(2):
            model(**batches(token_rows(4).rows)[0]).loss.backward()
            watched.gradients_ready()
            optimizer.step()
            watched.step()
    assert hooks(model) == before


def test_weights_of_a_run_are_not_moved_by_a_step_over_its_old_mark(tmp_path):
    """A checkpoint that is written over has no mark meanwhile: half-written, it must not count as healthy."""
    one, _ = run(tmp_path, gpt2(0.0), "warn", max_steps=8, **SAVES)
    assert read_mark(tmp_path / "checkpoint-2").healthy
    seen = []

    def save(*args, **kwargs):
        seen.append(read_mark(tmp_path / "checkpoint-2"))
        raise KeyboardInterrupt

    one._save_optimizer_and_scheduler = save
    with pytest.raises(KeyboardInterrupt):
        one.train()
    assert seen == [None] and weights(one.model)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, "much"])
def test_a_broken_state_is_left_out_whole(tmp_path, factor, caplog):
    """A factor on the learning rate least of all."""
    model, data = gpt2(0.0).train(), batches(token_rows(16).rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingRun(model, tmp_path, 9, [DivergenceGuard(GuardConfig("cut"))], optimizer=optimizer) as loop:
        state = json.loads(json.dumps(loop.state_dict()))
    state["guard"] |= {"factor": factor, "failing": 7}
    again = DivergenceGuard(GuardConfig("cut"))
    with TrainingRun(model, tmp_path / "again", len(data), [again], optimizer=optimizer, state=state) as loop:
        assert loop.engine.watch.gate.factor == 1.0 and again.failing == 0
    assert "The state of guard in the checkpoint cannot be read" in caplog.text
