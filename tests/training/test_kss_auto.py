"""``kss="auto"``: decided once, from the norm, the weights and the forecast; said in the log, the history and the checkpoints."""

import json

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_rksp import KSSConfig, RKSPTrainer, RKSPTrainingArguments
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training.before import Said
from hf_rksp.training.kss import auto
from hf_rksp.training.kss.auto import LIMITS, Network, choose, switch_of

from .common import VOCAB, assert_same_weights, gpt2, logged, trained, trainer

AUTO = {"kss": "auto", "spectrum": False}


def llama(seed=0):
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=32, max_position_embeddings=32, use_cache=False, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def untrained_gpt2():
    """As transformers initialises it: the vectors are constants."""
    set_seed(0)
    model = gpt2(dropout=0.0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
    return model


def trained_gpt2():
    model = untrained_gpt2()
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight += 0.1 * torch.randn(16)
    return model


@pytest.fixture
def forecasts(monkeypatch):
    """What the forecast says, and how often it was made."""
    made = []

    def say(p):
        def fake(trainer, blocks, kss=False):
            made.append(p)
            return Said(p, "P(lost) cannot be assessed: no reason." if p is None else f"P(lost) is {p}.", {"p_lost": p})

        monkeypatch.setattr(auto, "say", fake)
        monkeypatch.setattr("hf_rksp.training.before.say", fake)
        return made

    return say


def events(run):
    found = read_history(run.rksp.path).events
    return [row for row in found if row["what"] == "choice"]


@pytest.mark.parametrize(
    ("given", "switch"),
    [(True, "on"), (False, "off"), ("true", "on"), ("False", "off"), ("auto", "auto"), ("ON", "on"), ("off", "off")],
)
def test_what_users_write(given, switch):
    assert switch_of(given) == switch


@pytest.mark.parametrize("given", ["yes please", 1.5, None, {}, KSSConfig()])
def test_what_is_none_of_these_is_refused_by_name(given):
    with pytest.raises(InputError, match=r"kss=.*'auto', 'on' or 'off'"):
        switch_of(given)


def test_a_wrong_switch_is_refused_before_a_model_is_there(tmp_path):
    with pytest.raises(InputError, match="kss='perhaps'"):
        RKSPTrainingArguments(output_dir=str(tmp_path), kss="perhaps")
    with pytest.raises(InputError, match="kss='perhaps'"):
        RKSPTrainer(model=gpt2(), kss="perhaps")


def test_auto_is_the_default(tmp_path):
    assert RKSPTrainingArguments(output_dir=str(tmp_path)).kss == "auto"
    assert trainer(tmp_path, gpt2(), settings=TrainingArguments).kss_switch == "auto"


def test_settings_given_to_the_trainer_switch_it_on(tmp_path):
    assert trainer(tmp_path, gpt2(), settings=TrainingArguments, kss=KSSConfig(rank=4)).kss_switch == "on"


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_forecast_decides_from_the_limit_of_the_norm_on(norm):
    network = Network(norm, attention=True, trained=False)
    assert choose(network, LIMITS[norm]).on
    below = choose(network, LIMITS[norm] - 0.01)
    assert not below.on and "P(lost) is" in below.text
    assert not choose(network, None, "a reason").on


def test_with_rmsnorm_and_random_weights_no_forecast_is_needed():
    assert choose(Network("rms", attention=True, trained=False), None).on
    assert not choose(Network("rms", attention=True, trained=True), None, "trained").on
    assert not choose(Network("rms", attention=False, trained=False), None, "no attention").on


def test_rmsnorm_is_on_and_says_so(tmp_path, forecasts, caplog):
    made = forecasts(0.0)
    run = trained(tmp_path, llama(), **AUTO)
    assert len(logged(run, "kss/loss")) == 4 and made == []
    assert any("KSS is on" in record.message for record in caplog.records)
    (event,) = events(run)
    assert event["by"] == "kss" and event["norm"] == "rms" and event["step"] == 0


def test_a_safe_run_equals_that_of_trainer_to_the_bit(tmp_path, forecasts):
    made = forecasts(0.05)
    run = trained(tmp_path, untrained_gpt2(), **AUTO)
    plain = trained(tmp_path / "plain", untrained_gpt2(), kind=Trainer, settings=TrainingArguments)
    assert_same_weights(run.model, plain.model)
    assert made == [0.05] and logged(run, "kss/loss") == []


def test_a_risky_run_has_kss(tmp_path, forecasts):
    forecasts(0.9)
    run = trained(tmp_path, untrained_gpt2(), **AUTO)
    assert len(logged(run, "kss/loss")) == 4 and "90%" in events(run)[0]["text"]


def test_the_real_forecast_leaves_a_run_as_it_is(tmp_path):
    """Measured, not faked: at a tiny learning rate nothing is lost, and the run is that of Trainer."""
    run = trained(tmp_path, untrained_gpt2(), **AUTO, guard="warn", learning_rate=1e-6)
    plain = trained(tmp_path / "plain", untrained_gpt2(), kind=Trainer, settings=TrainingArguments, learning_rate=1e-6)
    assert_same_weights(run.model, plain.model)
    assert events(run)[0]["p_lost"] < LIMITS["layer"]


def test_trained_weights_are_not_measured_unless_risk_is_asked_for(tmp_path, forecasts):
    made = forecasts(0.9)
    run = trained(tmp_path, trained_gpt2(), **AUTO, guard="warn")
    assert made == [] and logged(run, "kss/loss") == [] and "trained" in events(run)[0]["text"]
    run = trained(tmp_path / "risk", trained_gpt2(), **AUTO, risk="warn")
    assert made == [0.9] and len(logged(run, "kss/loss")) == 4


def test_without_attention_it_is_off(tmp_path, forecasts):
    made = forecasts(0.9)
    set_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4, use_cache=False)
    run = trained(tmp_path, MambaForCausalLM(config), **AUTO, guard="warn")
    assert made == [] and "attention" in events(run)[0]["text"]


def test_a_model_without_blocks_trains_without_it(tmp_path):
    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCAB, VOCAB)

        def forward(self, input_ids, labels=None):
            logits = self.embedding(input_ids)
            return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    run = trained(tmp_path, Alone(), **AUTO, guard="warn")
    assert run.state.global_step == 4 and "no residual blocks" in events(run)[0]["text"]


def test_the_schedule_of_the_paper_is_on(tmp_path, forecasts):
    made = forecasts(0.0)
    run = trained(tmp_path, untrained_gpt2(), **AUTO, kss_schedule="paper", kss_every=1)
    assert made == [] and len(logged(run, "kss/loss")) == 4


def test_several_devices_train_without_it(tmp_path):
    args = trainer(tmp_path, gpt2(), **AUTO).args
    args._n_gpu = 2
    assert RKSPTrainer(model=gpt2(), args=args).kss_switch == "auto"


@pytest.mark.parametrize(("p", "on"), [(0.9, True), (0.1, False)])
def test_a_resumed_run_keeps_the_choice(tmp_path, forecasts, p, on):
    forecasts(p)
    saving = AUTO | {"guard": "warn", "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", untrained_gpt2(), **saving)
    made = forecasts(1 - p)  # what a new choice would be
    part = trainer(tmp_path / "part", untrained_gpt2(), **saving)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(part.model, whole.model)
    assert len(made) == 1 and bool(logged(part, "kss/loss")) is on
    state = json.loads((tmp_path / "part" / "checkpoint-4" / "rksp_state.json").read_text())
    assert state["kss_choice"] is on


def test_the_guard_may_switch_on_what_auto_has_left_off(tmp_path, forecasts):
    forecasts(0.1)
    run = trainer(tmp_path, untrained_gpt2(), **AUTO, guard="kss")
    seen = []
    inner = run.training_step

    def step(*args, **kwargs):
        seen.append(run.shaper is not None and run.shaper.dormant)
        return inner(*args, **kwargs)

    run.training_step = step
    run.train()
    assert seen == [True] * 4
