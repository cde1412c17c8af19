"""A step whose batches are measured before they are trained on: in a loop of one's own, and what it must leave alone."""

import random

import numpy
import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, TrainerCallback, set_seed

from hf_rksp import RKSPTrainer
from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError
from hf_rksp.training import SpectralShaper
from tests.training.common import (
    ALWAYS,
    Chain,
    Rows,
    assert_same_weights,
    gpt2,
    hooks,
    livelier,
    logged,
    padded_rows,
    token_rows,
    trained,
)


def batches(cut):
    rows = padded_rows(8).rows
    parts = [rows[i : i + cut] for i in range(0, 8, cut)]
    return [{name: torch.stack([row[name] for row in part]) for name in part[0]} for part in parts]


def loss_of(model, batch):
    """A sum over tokens, so that batches add up."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def gradients(cut, schedule, survey=True, **settings):
    model = livelier(gpt2(dropout=0.0)).double().train()
    kss = SpectralShaper(model, KSSConfig(schedule, rank=8, every=1, upper_threshold=ALWAYS, **settings))
    parts = batches(cut)
    with kss:
        if survey:
            with kss.measure_step():
                for batch in parts:
                    loss_of(model, batch)
        for batch in parts:
            (loss_of(model, batch) + kss.term() / len(parts)).backward()
        kss.step()
    assert hooks(model) == 0
    return {name: p.grad for name, p in model.named_parameters()}, kss.pop_logs()


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_small_batches_are_one_large_batch(schedule, fraction):
    whole, logs = gradients(8, schedule, survey=False, layer_fraction=fraction)
    assert logs["kss/layers_above"] == 1
    for cut in (8, 2):
        parts, same = gradients(cut, schedule, layer_fraction=fraction)
        assert same == pytest.approx(logs, rel=1e-9)
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-7, atol=1e-11 * float(gradient.abs().max()))
    # Without it they are not: the test would see it.
    other, _ = gradients(2, schedule, survey=False, layer_fraction=fraction)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert float((other[name] - whole[name]).norm() / whole[name].norm()) > 1e-3


def test_a_survey_counts_for_one_step():
    model = gpt2(dropout=0.0).train()
    with SpectralShaper(model, KSSConfig(rank=4, upper_threshold=ALWAYS)) as kss:
        radii = []
        for surveyed in (True, False):
            if surveyed:
                with kss.measure_step():
                    model(**batches(8)[0])
            model(**batches(2)[0]).loss.backward()
            kss.step()
            radii.append(kss.pop_logs()["kss/spectral_radius/max"])
    assert radii[0] != radii[1]


def test_nothing_is_left_behind():
    """No hook, no gradient, no draw of the random state, no change of running statistics; also after an exception."""
    model = Chain().train()
    model.head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(0, 1), nn.BatchNorm1d(16), nn.Linear(16, 48))
    ids = batches(8)[0]["input_ids"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    kss = SpectralShaper(model, KSSConfig(rank=4), blocks="layers")
    with kss.measure_step():
        assert not model(ids)["logits"].requires_grad
    with pytest.raises(ZeroDivisionError), kss.measure_step():
        model(ids)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0 and model.training and torch.is_grad_enabled()


def test_a_layer_that_is_not_finite_is_left_out_of_the_step():
    model = Chain().train()
    model.layers[2].after = lambda y: y * torch.nan
    with SpectralShaper(model, KSSConfig(rank=4, upper_threshold=0.1), blocks="layers") as kss:
        with kss.measure_step():
            model(batches(8)[0]["input_ids"])
        logs = kss.pop_logs()
    assert logs["kss/dropped"] == 2  # the layer that made it, and the one that was given it
    assert logs["kss/layers_above"] == 1


def test_trainer_measures_only_where_batches_are_accumulated(tmp_path):
    """With one batch a step there is nothing to add up: the same run to the bit."""
    runs = [trained(tmp_path, gpt2(), padded_rows(), kss_exact_accumulation=exact) for exact in (True, False)]
    assert_same_weights(runs[0].model, runs[1].model)
    assert logged(runs[0], "kss/loss") == logged(runs[1], "kss/loss")


EXACT = {"kss_exact_accumulation": True, "gradient_accumulation_steps": 2, "max_steps": 2}


def test_the_monitor_watches_the_pass_that_is_trained_on(tmp_path):
    """And the compiler is as before: both set it aside for their passes."""
    stances = []

    class Stance(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            stances.append(torch._dynamo.eval_frame._stance.stance)

    runs = [
        trained(
            tmp_path,
            gpt2(),
            padded_rows(),
            spectrum_every=1,
            callbacks=[Stance()],
            **EXACT | {"kss_exact_accumulation": on},
        )
        for on in (True, False)
    ]
    assert set(stances) == {"default"}
    # Nothing was trained on before the first profile, so it is the same; dropout too.
    assert (
        logged(runs[0], "spectrum/nonlinearity_ratio/mean")[0] == logged(runs[1], "spectrum/nonlinearity_ratio/mean")[0]
    )
    assert hooks(runs[0].model) == 0


class Skips(Chain):
    """Leaves blocks out, as LayerDrop does."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, input_ids, labels=None, **ignored):
        self.calls += 1
        kept, whole = self.layers, self.calls % 2 == 0
        self.layers = kept if whole else kept[1:]
        try:
            return super().forward(input_ids, labels)
        finally:
            self.layers = kept


def test_each_block_has_its_own_spectrum_where_blocks_are_left_out():
    """The first block runs in the second pass alone, so it is measured last."""
    model, ids = Skips().train(), batches(4)
    with SpectralShaper(model, KSSConfig(rank=4, upper_threshold=0.1), blocks="layers") as kss:
        with kss.measure_step() as survey:
            for batch in ids:
                model(batch["input_ids"])
        assert [index for _, index in survey.moments] == [1, 2, 3, 0]
        want = {key: kss._step_solved[key].gradient for key in kss._step_solved}
        used = {}
        act = kss.schedule.act

        def watch(measured):
            used.update({layer.block.index: g for layer, g in zip(measured.layers, measured.gradients, strict=True)})
            return act(measured)

        kss.schedule.act = watch
        for batch in ids:
            model(**{"input_ids": batch["input_ids"], "labels": batch["input_ids"]})["loss"].backward()
    assert set(used) == {0, 1, 2, 3}
    assert all(torch.equal(used[index], want["layers", index]) for index in used)


def test_blocks_in_evaluation_mode_are_left_alone():
    model = Chain().train()
    model.layers[0].eval()
    with SpectralShaper(model, KSSConfig(rank=4), blocks="layers") as kss:
        with kss.measure_step() as survey:
            model(batches(8)[0]["input_ids"])
        model(batches(8)[0]["input_ids"])
    assert [index for _, index in survey.moments] == [1, 2, 3]


def test_random_numbers_of_numpy_are_drawn_again():
    model = Chain().train()
    kss = SpectralShaper(model, KSSConfig(rank=4), blocks="layers")
    numpy.random.seed(0)
    with kss.measure_step():
        first = numpy.random.rand(), random.random()
    assert (numpy.random.rand(), random.random()) == first


class OwnLabels(Chain):
    """Its own loss cannot take the labels of the batch, and it takes nothing else."""

    def forward(self, input_ids, labels=None):
        assert labels is None
        return super().forward(input_ids)


def own_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten().clamp_min(0))


def test_labels_of_an_own_loss_are_kept_from_the_model(tmp_path):
    rows = token_rows()
    trained(tmp_path, OwnLabels(), rows, compute_loss_func=own_loss, residual_blocks="layers", spectrum=False, **EXACT)


class OwnColumn(RKSPTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs = dict(inputs)
        inputs.pop("weight")
        return super().compute_loss(model, inputs, *args, **kwargs)


class Answers(OwnColumn):
    def measure_pass(self, batch):
        super().measure_pass({name: value for name, value in batch.items() if name != "weight"})


class Generates(RKSPTrainer):
    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs(inputs)


class Strict(Chain):
    def forward(self, input_ids, labels=None):
        return super().forward(input_ids, labels)


def test_a_batch_that_the_model_does_not_take(tmp_path):
    rows = Rows(row | {"weight": torch.ones(())} for row in token_rows().rows)
    settings = {"residual_blocks": "layers", "spectrum": False, "remove_unused_columns": False} | EXACT
    with pytest.raises(InputError, match=r"kss_exact_accumulation=True: .*weight.*override measure_pass"):
        trained(tmp_path, Strict(), rows, OwnColumn, **settings)
    trained(tmp_path, Strict(), rows, Answers, **settings)
    with pytest.raises(InputError, match="Generates makes its batches anew"):
        trained(tmp_path, gpt2(), kind=Generates, **EXACT)


def test_padding_of_a_decoder_whose_labels_are_smoothed(tmp_path):
    """Trainer takes the labels out of the batch; they still tell the padding: 8 x 1 is 1 x 8."""
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0}

    def bart():
        set_seed(0)
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = BartConfig(vocab_size=48, max_position_embeddings=32, **sizes, **tokens)
        return livelier(BartForConditionalGeneration(config))

    def rows(filler):
        return Rows(
            row | {"decoder_input_ids": row["labels"].where(row["labels"] >= 0, filler)} for row in padded_rows().rows
        )

    def run(cut, filler=0):
        settings = {"label_smoothing_factor": 0.1, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
        cuts = {"per_device_train_batch_size": 8 // cut, "gradient_accumulation_steps": cut}
        return trained(tmp_path, bart(), rows(filler), kss_exact_accumulation=True, **settings, **cuts)

    whole, parts = run(1), run(4)
    for name in ("kss/loss", "spectrum/spectral_radius/max"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-3), name
    assert logged(run(1, filler=7), "kss/loss") == pytest.approx(logged(whole, "kss/loss"), rel=1e-6)
