"""A loop of one's own that forgets something, or passes something else: it is told at once, and the guard is not blind."""

import logging
import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hf_rksp import DivergenceGuard, GuardConfig, KSSConfig, MonitorConfig, RKSPCallback, RKSPTrainer, TrainingRun
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import SpectralMonitor
from tests.training.common import arguments, gpt2, token_rows, trained, trainer
from tests.training.test_alignment import batches


class NoBlocks(nn.Module):
    """A loss, and no list of residual blocks."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(48, 8), nn.Linear(8, 48)

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.head(self.embed(input_ids))
        loss = None if labels is None else cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"logits": logits} | ({} if loss is None else {"loss": loss})


def loop(folder, guard, losses, tell=True, ready=True, model=None):
    """A loss of one's own, which the model does not return; ``losses`` are added to it."""
    model = model or gpt2(0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingRun(model, folder, len(losses), [guard], optimizer=optimizer) as run:
        for batch, more in zip(batches(token_rows(4 * len(losses)).rows), losses, strict=True):
            logits = model(input_ids=batch["input_ids"])["logits"]
            loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()) + more
            loss.backward()
            if ready:
                run.gradients_ready(loss=loss if tell and guard.acts else None)
            optimizer.step()
            optimizer.zero_grad()
            run.step(**({"loss": loss.detach()} if tell else {}))
    return guard


RISES = [0.0] * 6 + [1e6] * 2


@pytest.mark.parametrize("actions", ["warn", "skip"])
def test_a_loss_that_the_model_does_not_return_is_judged(tmp_path, actions, caplog):
    guard = loop(tmp_path, DivergenceGuard(GuardConfig(actions)), RISES)
    assert guard.failing == 2 and "does not see" not in caplog.text
    said = [
        record for record in caplog.records if record.levelno == logging.WARNING and "Step 6" in record.getMessage()
    ]
    assert said, "an alarm is said where everybody sees it"


@pytest.mark.parametrize("actions", ["warn", "skip"])
def test_a_guard_that_sees_no_loss_says_so_once(tmp_path, actions, caplog):
    guard = loop(tmp_path, DivergenceGuard(GuardConfig(actions)), RISES, tell=False)
    assert guard.failing == 0 and caplog.text.count("does not see the loss") == 1


def test_gradients_that_are_not_said_are_an_error_if_the_guard_acts(tmp_path, caplog):
    with pytest.raises(InputError, match=r"call run\.gradients_ready\(\)"):
        loop(tmp_path / "acts", DivergenceGuard(GuardConfig("skip")), [0.0] * 3, ready=False)
    loop(tmp_path / "warns", DivergenceGuard(), [0.0] * 3, ready=False)
    assert caplog.text.count("does not see the gradients") == 1


def test_a_guard_alone_needs_no_blocks(tmp_path):
    assert loop(tmp_path, DivergenceGuard(GuardConfig("skip")), RISES, model=NoBlocks().train()).failing == 2
    with (
        pytest.raises(CaptureError, match="no residual blocks"),
        TrainingRun(NoBlocks(), tmp_path, 2, [SpectralMonitor()]),
    ):
        pass


def test_a_trainer_without_blocks_has_its_loss_judged(tmp_path):
    class Own(RKSPTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            loss = output["loss"] + (1e6 if self.state.global_step >= 6 else 0.0)
            return (loss, output) if return_outputs else loss

    run = trained(tmp_path, NoBlocks(), token_rows(64), Own, kss="off", guard="warn", max_steps=8)
    assert run._the_guard.failing == 2


@pytest.mark.parametrize("value", [torch.tensor(2.5), torch.tensor(2.5, dtype=torch.bfloat16), numpy.float32(2.5)])
def test_numbers_of_torch_and_numpy_are_numbers(tmp_path, value):
    with TrainingRun(gpt2().train(), tmp_path, 2) as run:
        run.step(loss=value, count=numpy.int64(3))
    (row,) = read_history(tmp_path).logs
    assert row["loss"] == 2.5 and row["count"] == 3


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"loss": torch.ones(2)}, "loss=.*pass a number"),
        ({"loss": [1.0]}, "loss=.*pass a number"),
        ({"step": 5}, "step=5: .*choose another one"),
        ({"kind": "warm"}, "kind='warm': .*choose another one"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, logs, words):
    with pytest.raises(InputError, match=words), TrainingRun(gpt2().train(), tmp_path, 2) as run:
        run.step(**logs)


@pytest.mark.parametrize("name", ["step-1", "checkpoint-2", "deeper/checkpoint-1", "checkpoint-1"])
def test_a_checkpoint_that_the_guard_would_not_find_is_refused(tmp_path, name):
    if name != "checkpoint-1":  # which is not there
        (tmp_path / name).mkdir(parents=True)
    with TrainingRun(gpt2().train(), tmp_path, 4) as run:
        run.step()
        with pytest.raises(InputError, match=r"no such folder|1 steps were made, so pass .*checkpoint-1'"):
            run.saved(tmp_path / name)
        (tmp_path / "checkpoint-1").mkdir(exist_ok=True)
        run.saved(tmp_path / "checkpoint-1")


def test_the_learning_rate_goes_on_where_it_is_after_a_return(tmp_path):
    """A schedule that multiplies would go on from the rate of the checkpoint."""
    model = gpt2(0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def rewind(folder):
        kept = torch.load(folder / "all.pt")
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])

    guard = DivergenceGuard(GuardConfig("rollback", healthy=2))
    with TrainingRun(model, tmp_path, 10, [guard], optimizer=optimizer, rewind=rewind) as run:
        for step, batch in enumerate(batches(token_rows(40).rows)):
            loss = model(**batch).loss * (math.nan if step == 7 else 1.0)
            loss.backward()
            run.gradients_ready(loss=loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            run.step()
            if step == 3:
                place = tmp_path / "checkpoint-4"
                place.mkdir()
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, place / "all.pt")
                run.saved(place)
    assert [row["what"] for row in read_history(tmp_path).events if row["what"] != "alarm"] == ["rolled back"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: TrainingRun(gpt2(), folder, 2, kss=True), r"kss='True': pass KSSConfig\(\)"),
        (lambda folder: TrainingRun(gpt2(), folder, 2, SpectralMonitor()), "monitors=SpectralMonitor: pass a list"),
        (lambda folder: TrainingRun(gpt2(), folder, 2, [MonitorConfig()]), "monitors has a MonitorConfig: pass monitors"),
        (lambda folder: DivergenceGuard("skip"), r"config='skip': pass GuardConfig"),
        (lambda folder: RKSPCallback({"every": 3}), r"config=.*pass MonitorConfig"),
        (lambda folder: RKSPCallback(KSSConfig()), r"config=.*pass MonitorConfig"),
        (lambda folder: RKSPCallback(probe=[{"input_ids": None}]), "probe has 1 batches.*pass data='probe'"),
        (lambda folder: RKSPTrainer(gpt2(), arguments(folder), guard=DivergenceGuard()), "guard=.*pass actions such as"),
        (lambda folder: RKSPTrainer(gpt2(), arguments(folder), guard={"actions": "skip"}), "guard=.*pass actions such as"),
        (lambda folder: trainer(folder, gpt2(), monitor={"every": 3}), "monitor=.*pass MonitorConfig"),
        (lambda folder: trainer(folder, gpt2(), probe=[{"input_ids": None}]), "probe has 1 batches"),
        (lambda folder: trainer(folder, gpt2(), monitor=False, probe=[{"input_ids": None}]), "the spectral monitor is off"),
    ],
)  # fmt: skip
def test_another_kind_of_argument_is_refused_by_its_name(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        make(tmp_path)


def test_a_guard_that_goes_back_asks_for_what_loads_checkpoints(tmp_path):
    optimizer = torch.optim.SGD((model := gpt2().train()).parameters(), lr=0.1)
    parts = [DivergenceGuard(GuardConfig("rollback"))]
    with (
        pytest.raises(InputError, match="pass rewind= to TrainingRun"),
        TrainingRun(model, tmp_path, 2, parts, optimizer=optimizer),
    ):
        pass
