"""No hook is left, however a run ends; and the next run is as good as if the failed one had never been."""

import gc
import weakref

import pytest
import torch
from transformers import Trainer, TrainerCallback, set_seed

from hf_rksp import RKSPCallback, RKSPTrainer
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.training import SpectralShaper
from tests.training.common import Rows, assert_same_weights, gpt2, hooks, logged, token_rows, trained, trainer

AT = 2


class Stop(Exception):
    """Not one that anybody else raises."""


class FailsIn(TrainerCallback):
    """Raises in one event of step AT."""

    def __init__(self, event, error):
        setattr(self, event, self.fail)
        self.error, self.armed = error, True

    def fail(self, args, state, control, **kwargs):
        if self.armed and state.global_step >= AT:
            raise self.error


class BreaksRows(Rows):
    """The dataset raises once it has given enough rows."""

    def __init__(self, rows, error):
        super().__init__(rows.rows)
        self.error, self.armed, self.given = error, True, 0

    def __getitem__(self, i):
        self.given += 1
        if self.armed and self.given > 4 * (AT + 1):  # the loader is one batch ahead
            raise self.error
        return super().__getitem__(i)


def fails_in_forward(model, error, where):
    """The ``where`` of the model raises in its third forward pass."""
    calls, part = [], model.get_submodule(where)
    forward = part.forward

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == AT + 1:
            raise error
        return forward(*args, **kwargs)

    part.forward = failing  # not a hook: those are counted


class Breaks(torch.autograd.Function):
    """The identity, whose third backward pass raises."""

    calls = 0
    error: BaseException

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Breaks.calls += 1
        if Breaks.calls == AT + 1:
            raise Breaks.error
        return gradient


def fails_in_backward(model, error):
    Breaks.calls, Breaks.error = 0, error
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: forward(Breaks.apply(x))


FAILURES = ("embedding", "block", "head", "backward", "dataset", "on_step_begin", "on_step_end", "on_log")
#: Monitor every step, so that its hooks are on when it goes wrong.
MONITOR = MonitorConfig(every=1, rank=8)


def broken(kind, where, error, folder):
    model, rows, callbacks = gpt2(), token_rows(), []
    if where == "backward":
        fails_in_backward(model, error)
    elif where == "dataset":
        rows = BreaksRows(rows, error)
    elif where.startswith("on_"):
        callbacks.append(FailsIn(where, error))
    else:
        fails_in_forward(
            model, error, {"embedding": "transformer.wte", "block": "transformer.h.1", "head": "lm_head"}[where]
        )
    if kind is Trainer:
        # Behind the one that fails: then what fails before our turn and what fails after it are both seen.
        callbacks.append(RKSPCallback(MONITOR))
        run = trainer(folder, model, rows, Trainer, callbacks=callbacks)
    else:
        run = trainer(folder, model, rows, kind, callbacks=callbacks, spectrum_every=1)
    return run


@pytest.mark.parametrize("error", [Stop("planned"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("where", FAILURES)
@pytest.mark.parametrize("kind", [RKSPTrainer, Trainer], ids=["trainer", "callback"])
def test_failed_run_leaves_no_hook(kind, where, error, tmp_path):
    run = broken(kind, where, error, tmp_path)
    with pytest.raises(type(error)):
        run.train()
    assert run.state.global_step in (AT, AT + 1)
    if kind is Trainer and isinstance(error, KeyboardInterrupt) and where in ("embedding", "block", "head"):
        # torch runs no hook when a forward pass is interrupted. The next forward pass takes them away.
        run.model(**{name: value[None] for name, value in token_rows().rows[0].items()})
    assert hooks(run.model) == 0
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_callback_that_fails_after_ours_leaves_hooks_until_the_next_forward_pass(tmp_path):
    """A callback is not told that another one raised. `RKSPTrainer` is, and cleans up."""
    for kind in (Trainer, RKSPTrainer):
        model = gpt2()
        ours = [RKSPCallback(MONITOR)] if kind is Trainer else []
        run = trainer(tmp_path, model, kind=kind, callbacks=ours, spectrum_every=1)
        run.add_callback(FailsIn("on_step_begin", Stop()))
        with pytest.raises(Stop):
            run.train()
        if kind is Trainer:
            model(**{name: value[None] for name, value in token_rows().rows[0].items()})
        assert hooks(model) == 0


@pytest.mark.parametrize("where", ["block", "backward", "dataset", "on_step_begin"])
def test_good_run_after_a_failed_one(where, tmp_path):
    run = broken(RKSPTrainer, where, Stop(), tmp_path / "failed")
    with pytest.raises(Stop):
        run.train()
    for thing in (*run.callback_handler.callbacks, run.train_dataset):
        thing.armed = False
    start = gpt2()
    run.model.load_state_dict(start.state_dict())
    run.optimizer = None
    set_seed(run.args.seed)  # Trainer does so when it is made
    run.train()
    fresh = trained(tmp_path / "fresh", start, spectrum_every=1)
    assert_same_weights(run.model, fresh.model)
    assert logged(run, "kss/loss") == logged(fresh, "kss/loss")
    assert len(logged(run, "spectrum/near_unit_mass/max")) == 4
    assert hooks(run.model) == 0


def test_hooks_are_there_while_training_and_only_then(tmp_path):
    """What is counted to be zero elsewhere is not zero always."""
    counts = {}

    class Counts(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            counts["step"] = hooks(model)

        def on_train_end(self, args, state, control, model, **kwargs):
            counts["end"] = hooks(model)

    run = trained(tmp_path, gpt2(), callbacks=[Counts()])
    assert counts["step"] > 0
    assert hooks(run.model) == 0
    off = trained(tmp_path, gpt2(), callbacks=[Counts()], kss_weight=0.0)
    assert counts["step"] == 0  # the monitor takes its own away at the end of the forward pass
    assert hooks(off.model) == 0


def test_evaluation_and_prediction_inside_training_are_not_touched(tmp_path, monkeypatch):
    """In evaluation mode nothing is measured, nothing drawn, and the predictions are those of a model without hooks."""
    finished, seen = [], []
    finish = SpectralShaper._finish
    monkeypatch.setattr(SpectralShaper, "_finish", lambda *args: (finished.append(1), finish(*args))[1])

    class Predicts(TrainerCallback):
        def on_evaluate(self, args, state, control, model, metrics, **kwargs):
            run = self.run
            before = len(finished)
            predicted = run.predict(token_rows(8, seed=5))
            generated = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
            clean = gpt2()
            clean.load_state_dict(model.state_dict())
            again = trainer(tmp_path / "clean", clean, kind=Trainer).predict(token_rows(8, seed=5))
            assert (predicted.predictions == again.predictions).all()
            same = clean.eval().generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
            assert torch.equal(generated, same)
            assert len(finished) == before
            assert not {name for name in metrics if name.startswith(("kss", "rksp"))}
            seen.append(hooks(model))

    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": token_rows(8, seed=9)}
    predicts = Predicts()
    run = predicts.run = trainer(tmp_path, gpt2(), callbacks=[predicts], **evaluation)
    run.train()
    assert len(seen) == 2 and all(seen)  # the hooks were there all the time
    assert len(finished) == 4
    evaluations = [row for row in run.state.log_history if "eval_loss" in row]
    assert evaluations and not any(name.startswith(("kss", "rksp")) for row in evaluations for name in row)


def test_states_are_freed_with_the_graph(tmp_path):
    """A cycle between the graph and the hooks would hold all states until Python looks for cycles."""
    model, alive = gpt2(), []

    def keep(module, args, output):  # transformers 5.0 gives a tuple
        alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    model.transformer.h[1].register_forward_hook(keep)
    ids = token_rows().rows[0]["input_ids"][None]
    gc.disable()
    try:
        for schedule in ("balanced", "paper"):
            with SpectralShaper(model.train(), KSSConfig(schedule, rank=4, upper_threshold=0.91)) as kss:
                loss = model(input_ids=ids, labels=ids).loss + kss.term()
                loss.backward()
                del loss
                assert alive.pop()() is None, schedule
    finally:
        gc.enable()
