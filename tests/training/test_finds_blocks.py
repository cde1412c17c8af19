"""Blocks that only a forward pass shows, and models without any: found in the first batch, or refused before the first step."""

import random

import numpy
import pytest
import torch
from torch import nn
from transformers import MPNetConfig, MPNetForMaskedLM, Trainer, TrainingArguments, set_seed

from hf_rksp import RKSPCallback, RKSPTrainer, RKSPTrainingArguments
from hf_rksp.config import MonitorConfig
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.history.read import read_history
from tests.training.common import (
    Chain,
    Rows,
    arguments,
    assert_same_weights,
    gpt2,
    hooks,
    logged,
    token_rows,
    trained,
    trainer,
)


class Point(nn.Module):
    """A regression: nothing in it is a stream of states."""

    def __init__(self):
        super().__init__()
        set_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x, labels=None):
        y = self.layer(x)[:, 0]
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


POINTS = Rows({"x": torch.full((4,), float(i % 5)), "labels": torch.tensor(1.0)} for i in range(32))


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_rksp")]


def mpnet():
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return MPNetForMaskedLM(MPNetConfig(vocab_size=48, max_position_embeddings=32, **sizes))


def test_blocks_are_found_in_the_first_batch(tmp_path, caplog):
    """The run is that of a model whose blocks were named, dropout and all; the probe leaves nothing behind."""
    settings = {"spectrum_every": 1, "kss_exact_accumulation": True, "gradient_accumulation_steps": 2, "max_steps": 3}
    named = trained(tmp_path / "named", mpnet(), residual_blocks="mpnet.encoder.layer", **settings)
    found = trained(tmp_path / "found", mpnet(), **settings)
    assert_same_weights(named.model, found.model)
    for name in ("kss/loss", "kss/skipped", "spectrum/skipped", "spectrum/spectral_radius/max"):
        assert logged(named, name) == logged(found, name) and len(logged(found, name)) == 3, name
    assert hooks(found.model) == 0 and not warned(caplog)
    watched = trained(tmp_path / "watched", mpnet(), kss=False, **settings)
    plain = trained(tmp_path / "plain", mpnet(), None, Trainer, gradient_accumulation_steps=2, max_steps=3)
    assert_same_weights(watched.model, plain.model)
    assert len(logged(watched, "spectrum/spectral_radius/max")) == 3


def test_a_probe_of_the_monitor_finds_them_too(tmp_path):
    probe = [{"input_ids": torch.stack([row["input_ids"] for row in token_rows(8).rows])}]
    run = trained(tmp_path, mpnet(), probe=probe, spectrum_data="probe")
    assert len(logged(run, "spectrum/spectral_radius/max")) > 1


@pytest.mark.parametrize("how", [{}, {"kss_schedule": "paper"}, {"kss": False, "monitor": MonitorConfig()}])
def test_a_model_without_blocks_is_refused_before_the_first_step(how, tmp_path):
    run = trainer(tmp_path, Point(), POINTS, **how)
    with pytest.raises(CaptureError) as error:
        run.train()
    for remedy in ("blocks=", "residual_blocks", "kss='off'", "monitor=False", "spectrum=False"):
        assert remedy in str(error.value)
    assert run.state.global_step == 0 and hooks(run.model) == 0
    # The next run of the same trainer is told so too.
    with pytest.raises(CaptureError, match="kss='off'"):
        run.train()


@pytest.mark.parametrize("settings", [None, TrainingArguments])
def test_without_kss_it_trains_and_says_that_nothing_is_profiled(settings, tmp_path, caplog):
    given = {"settings": settings} if settings else {}
    run = trained(tmp_path, Point(), POINTS, kss=False, **given)
    assert run.state.global_step == 4
    (text,) = warned(caplog)
    assert "Nothing is profiled" in text and "monitor=False" in text
    assert not read_history(tmp_path).readings, "the guard watches, and has nothing to say"


def test_a_callback_beside_a_plain_trainer_stands_aside(tmp_path, caplog):
    runs = []
    for callbacks in ([], [RKSPCallback(MonitorConfig(every=1))]):
        runs.append(trained(tmp_path, Point(), POINTS, Trainer, callbacks=callbacks))
    assert_same_weights(runs[0].model, runs[1].model)
    assert len(warned(caplog)) == 1
    with pytest.raises(InputError, match="blocks='layer'"):  # what was asked for in words is refused
        trained(tmp_path, Point(), POINTS, Trainer, callbacks=[RKSPCallback(blocks="layer")])


class Picky(Chain):
    """Cannot be called with the batch alone."""

    def forward(self, input_ids, scale, labels=None):
        return super().forward(input_ids, labels)


class Scales(RKSPTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {**inputs, "scale": 1.0}, *args, **kwargs)


class Overrides(Scales):
    def measure_pass(self, batch):
        self.model(**self._prepare_inputs(batch), scale=1.0)


def test_a_model_that_cannot_be_called_with_the_batch_alone(tmp_path):
    with pytest.raises(CaptureError, match=r"TypeError: .*scale.*measure_pass.*kss='off'"):
        trained(tmp_path, Picky(), kind=Scales)
    assert len(logged(trained(tmp_path, Picky(), kind=Overrides), "kss/loss")) == 4


class OwnStep(RKSPTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        model.train()
        loss = model(**self._prepare_inputs(inputs))["loss"]
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_training_step_of_ones_own_hides_the_first_batch(tmp_path, caplog):
    run = trainer(tmp_path, Chain(), kind=OwnStep)
    with pytest.raises(CaptureError, match="training_step"):
        run.train()
    assert run.state.global_step == 1
    run = trained(tmp_path, Chain(), kind=OwnStep, kss=False)
    assert run.state.global_step == 4 and "training_step" in warned(caplog)[-1]
    named = {"residual_blocks": "layers"}
    assert len(logged(trained(tmp_path, Chain(), kind=OwnStep, **named), "kss/loss")) == 4


class Counts(nn.Module):
    """No blocks, and a forward pass that changes a buffer and draws from every random state."""

    def __init__(self):
        super().__init__()
        set_seed(0)
        self.linear = nn.Linear(3, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, labels=None):
        self.calls += 1
        noise = numpy.random.rand() + random.random() + torch.rand(())
        y = self.linear(x).squeeze(-1) * (1 + noise) + self.calls
        return nn.functional.mse_loss(y, labels), y


def test_the_search_in_the_first_batch_leaves_the_run_as_it_was(tmp_path):
    rows = [{"x": [0.1 * i, 1.0, 2.0], "labels": float(i)} for i in range(16)]
    runs = []
    for kind, more in ((Trainer, {"settings": TrainingArguments}), (RKSPTrainer, {"kss": False})):
        random.seed(0)
        numpy.random.seed(0)
        runs.append(trained(tmp_path, Counts(), rows, kind, **more))
    assert_same_weights(*(run.model for run in runs))


def of_two_devices(folder, kind):
    args = arguments(folder, kind)
    assert args.n_gpu <= 1
    args._n_gpu = 2
    return args


def test_several_devices_in_one_process(tmp_path, caplog):
    """KSS refuses, the monitor stands aside, and with both off it is the Trainer underneath."""
    with pytest.raises(InputError, match=r"DataParallel.*kss='off'"):
        RKSPTrainer(model=gpt2(), args=of_two_devices(tmp_path, RKSPTrainingArguments))
    for kind, settings, more in (
        (RKSPTrainer, RKSPTrainingArguments, {"kss": False}),
        (Trainer, TrainingArguments, {"callbacks": [RKSPCallback()]}),
        (RKSPTrainer, RKSPTrainingArguments, {"kss": False, "monitor": False}),
    ):
        caplog.clear()
        run = kind(model=gpt2(), args=of_two_devices(tmp_path, settings), train_dataset=token_rows(), **more)
        run.train()
        assert run.state.global_step == 4 and not list(tmp_path.glob("*.jsonl"))
        assert ["DataParallel" in text for text in warned(caplog)] == ([] if "monitor" in more else [True])
