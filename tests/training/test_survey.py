"""A step whose batches are measured before they are trained on: in a loop of one's own, and what it must leave alone."""

import pytest
import torch
from torch import nn

from hf_rksp.config import KSSConfig
from hf_rksp.training import SpectralShaper
from tests.training.common import (
    ALWAYS,
    Chain,
    assert_same_weights,
    gpt2,
    hooks,
    livelier,
    logged,
    padded_rows,
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
            with kss.survey():
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
                with kss.survey():
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
    with kss.survey():
        assert not model(ids)["logits"].requires_grad
    with pytest.raises(ZeroDivisionError), kss.survey():
        model(ids)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0 and model.training and torch.is_grad_enabled()


def test_a_layer_that_is_not_finite_is_left_out_of_the_step():
    model = Chain().train()
    model.layers[2].after = lambda y: y * torch.nan
    with SpectralShaper(model, KSSConfig(rank=4, upper_threshold=0.1), blocks="layers") as kss:
        with kss.survey():
            model(batches(8)[0]["input_ids"])
        logs = kss.pop_logs()
    assert logs["kss/dropped"] == 2  # the layer that made it, and the one that was given it
    assert logs["kss/layers_above"] == 1


def test_trainer_measures_only_where_batches_are_accumulated(tmp_path):
    """With one batch a step there is nothing to add up: the same run to the bit."""
    runs = [trained(tmp_path, gpt2(), padded_rows(), kss_exact_accumulation=exact) for exact in (True, False)]
    assert_same_weights(runs[0].model, runs[1].model)
    assert logged(runs[0], "kss/loss") == logged(runs[1], "kss/loss")
