"""Twenty model types, of every kind of input and of stack, by the code that tries all of them (scripts/support)."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from support import inputs, models, tiny, training
from support import trial as trials
from support.trial import trial

#: Model type -> what is particular about it.
SAMPLE = {
    "bert": "text",
    "xlnet": "tokens before sequences",
    "albert": "one module is every layer",
    "longformer": "padding inside the model",
    "gemma2": "layers of two kinds",
    "mamba": "state space",
    "mixtral": "experts",
    "t5": "two sides",
    "vit": "image",
    "layoutlmv3": "image after the text",
    "levit": "a stage that narrows",
    "detr": "learnt queries",
    "videomae": "video",
    "wav2vec2": "sound, convolutions in front",
    "whisper": "sound to text",
    "patchtst": "time series, channels",
    "clip": "two towers",
    "llava": "image in the text",
    "qwen2_vl": "patches without a batch",
}


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(before)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_works(model_type):
    row = trial(model_type, draws=False)
    assert row["outcome"] in ("works", "works with a note"), row["reason"]
    assert all(row["training"]["kss"]) and len(row["training"]["losses"]) == 5
    assert row["tokens"]


def test_convolutions_are_refused_in_a_sentence():
    row = trial("convnext", draws=False)
    assert row["outcome"] == "refused" and "no residual blocks found in ConvNextModel" in row["reason"], row


def test_what_a_profile_leaves_out_is_a_note_of_the_row():
    row = trial("levit", "profile", draws=False)
    assert row["outcome"] == "works with a note" and "They are left out: encoder.stages.0.layers.4" in row["reason"], (
        row
    )


def test_a_type_of_few_tokens_trains_on_larger_batches_with_as_many_labels():
    model = models.build(models.base_class("vit_mae"), tiny.tiny_config("vit_mae")).eval()
    fed = inputs.feed(model)
    large = inputs.to_train(model, fed, "vit_mae")
    assert [len(batch["pixel_values"]) for batch in large.batches] == [16, 16] and large.sequences == 16
    assert torch.equal(large.batches[0]["pixel_values"][:8], fed.batches[0]["pixel_values"])
    assert len(training._labelled(large.batches[0], "class", large.sequences)["labels"]) == 16
    assert inputs.to_train(model, fed, "vit") is fed


def test_one_token_too_many_is_a_fault(monkeypatch):
    profiled = trials.profile_model

    def wrong(*args, **kwargs):
        profile = profiled(*args, **kwargs)
        layers = [dataclasses.replace(layer, tokens=layer.tokens + 1) for layer in profile.layers]
        return dataclasses.replace(profile, layers=tuple(layers))

    monkeypatch.setattr(trials, "profile_model", wrong)
    row = trial("bert", draws=False)
    assert row["outcome"] == "fault" and "counts 253 tokens where there are 252" in row["reason"], row


def test_states_of_other_modules_are_a_fault(monkeypatch):
    profiled = trials.profile_model

    def wrong(*args, **kwargs):
        profile = profiled(*args, **kwargs)
        layers = [dataclasses.replace(layer, path=f"{layer.path}.intermediate") for layer in profile.layers]
        return dataclasses.replace(profile, layers=tuple(layers))

    monkeypatch.setattr(trials, "profile_model", wrong)
    row = trial("bert", draws=False)
    assert row["outcome"] == "fault" and "encoder.layer are not the model's own hidden_states" in row["reason"], row


def test_a_run_that_dies_and_one_without_kss_are_faults(monkeypatch):
    def broken(*_, **__):
        raise KeyError("states")

    with monkeypatch.context() as patch:
        patch.setattr(training._ShapedTrainer, "training_step", broken)
        row = trial("bert", draws=False)
        assert row["outcome"] == "fault" and "RKSPTrainer dies where Trainer trains: KeyError" in row["reason"], row
    monkeypatch.setattr(training._ShapedTrainer, "kss", None)
    row = trial("bert", draws=False)
    assert row["outcome"] == "fault" and "KSS acted in 0 of 5 steps, without a word" in row["reason"], row
