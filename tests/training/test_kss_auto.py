"""``kss="auto"``: decided once, from the norm, the weights and the forecast; said in the log, the history and the checkpoints."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_rksp import KSSConfig, RKSPTrainer, RKSPTrainingArguments
from hf_rksp.capture import find_stacks
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.history.read import read_history
from hf_rksp.risk.calibrated import NO_ANSWER
from hf_rksp.training.before import Said
from hf_rksp.training.kss import auto
from hf_rksp.training.kss.auto import LIMITS, TRAINED, Decision, choose, kept, switch_of, without_forecast
from hf_rksp.training.kss.look import stacks_without_data
from hf_rksp.training.kss.network import Network, network_of
from tests.versions import needs_transformers

from .common import VOCAB, assert_same_weights, gpt2, logged, token_rows, trained, trainer

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
    return [row for row in found if row["what"] == "decision"]


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


def test_the_limits_are_those_of_the_documents():
    assert LIMITS == {"none": 0.25, "layer": 0.5, "rms": 0.5} and TRAINED == 0.5


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_forecast_decides_from_the_limit_of_the_norm_on(norm):
    network = Network(norm, attention=True, trained=False, causal=True)
    assert choose(network, LIMITS[norm]).on
    below = choose(network, LIMITS[norm] - 0.004)
    assert not below.on and f"P(lost) is {100 * LIMITS[norm] - 0.4:.1f}%" in below.text
    assert not choose(network, None, "a reason").on


def test_trained_weights_have_one_limit_and_no_attention_has_none():
    trained_ = Network("none", attention=True, trained=True, causal=True)
    assert choose(trained_, TRAINED).on and not choose(trained_, LIMITS["none"]).on
    assert not choose(Network("layer", attention=False, trained=False, causal=True), 0.99).on


def test_with_rmsnorm_and_random_weights_no_forecast_is_needed():
    assert choose(Network("rms", attention=True, trained=False, causal=True), None).on
    assert not choose(Network("rms", attention=True, trained=True, causal=True), None, "trained").on
    assert not choose(Network("rms", attention=False, trained=False, causal=True), None, "no attention").on
    assert not choose(Network("rms", attention=True, trained=False, causal=False), None, "no language model").on


def test_rmsnorm_behind_the_parts_waits_for_the_forecast():
    network = Network("rms", attention=True, trained=False, causal=True, behind=True)
    assert without_forecast(network) is None
    assert choose(network, 0.5).on and not choose(network, 0.49).on
    assert "RMSNorm behind attention and MLP" in choose(network, 0.1).text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "behind"),
    [("llama", False), ("qwen3", False), ("granite", False), ("olmo2", True), ("gemma3_text", True), ("glm4", True)],
)
def test_norms_behind_the_parts_are_seen(kind, behind, dtype):
    set_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        intermediate_size=64, max_position_embeddings=32, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    network = network_of(model, find_stacks(model))
    assert network.norm == "rms" and network.behind == behind and network.gains_always != behind


def test_norms_before_the_parts_are_never_behind_whatever_the_size_of_the_stream():
    for size in (1e-3, 1.0, 1e3):
        model = llama()
        with torch.no_grad():
            model.model.embed_tokens.weight *= size
        assert not network_of(model, find_stacks(model)).behind, size


def test_rmsnorm_is_on_and_says_so(tmp_path, forecasts, caplog):
    made = forecasts(0.0)
    run = trained(tmp_path, llama(), **AUTO)
    assert len(logged(run, "kss/loss")) == 4 and made == []
    assert sum("KSS is on" in record.message for record in caplog.records) == 1
    (event,) = events(run)
    assert event["by"] == "kss" and event["norm"] == "rms" and event["step"] == 0


def test_a_safe_run_equals_that_of_trainer_to_the_bit(tmp_path, forecasts):
    made = forecasts(0.05)
    run = trained(tmp_path, untrained_gpt2(), **AUTO)
    plain = trained(tmp_path / "plain", untrained_gpt2(), kind=Trainer, settings=TrainingArguments)
    assert_same_weights(run.model, plain.model)
    assert made == [0.05] and len(logged(run, "kss/loss")) == 1  # measured in the first of four steps


def test_a_risky_run_has_kss(tmp_path, forecasts):
    forecasts(0.9)
    run = trained(tmp_path, untrained_gpt2(), **AUTO)
    assert len(logged(run, "kss/loss")) == 4 and "90%" in events(run)[0]["text"]


def test_an_interval_that_decides_nothing_leaves_it_off(tmp_path, monkeypatch):
    said = Said(0.64, "P(lost) is 64% (below 1% to above 99%). " + NO_ANSWER, {"p_lost_interval": [0.001, 0.999]})
    monkeypatch.setattr(auto, "say", lambda trainer, blocks: said)
    run = trained(tmp_path, untrained_gpt2(), **AUTO)
    assert not run.rksp.decision.on and NO_ANSWER in run.rksp.decision.text


def test_the_real_forecast_leaves_a_run_as_it_is(tmp_path):
    """Measured, not faked: at a tiny learning rate nothing is lost, and the run is that of Trainer."""
    run = trained(tmp_path, untrained_gpt2(), **AUTO, guard="warn", learning_rate=1e-6)
    plain = trained(tmp_path / "plain", untrained_gpt2(), kind=Trainer, settings=TrainingArguments, learning_rate=1e-6)
    assert_same_weights(run.model, plain.model)
    assert events(run)[0]["p_lost"] < LIMITS["layer"]


def test_trained_weights_are_not_measured_unless_risk_is_asked_for(tmp_path, forecasts):
    made = forecasts(0.9)
    run = trained(tmp_path, trained_gpt2(), **AUTO, guard="warn")
    assert made == [] and len(logged(run, "kss/loss")) == 1 and "trained" in events(run)[0]["text"]
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
    args = trainer(tmp_path, gpt2(), **AUTO, guard="warn").args
    args._n_gpu = 2
    run = RKSPTrainer(model=gpt2(), args=args, train_dataset=token_rows())
    run.train()
    assert run.state.global_step == 4 and not run.rksp.decision.on and "several devices" in run.rksp.decision.text


@pytest.mark.parametrize(("p", "on"), [(0.9, True), (0.1, False)])
def test_a_resumed_run_keeps_the_choice(tmp_path, forecasts, p, on):
    forecasts(p)
    saving = AUTO | {"guard": "warn", "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", untrained_gpt2(), **saving)
    made = forecasts(1 - p)  # what a new choice would be
    part = trainer(tmp_path / "part", untrained_gpt2(), **saving)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(part.model, whole.model)
    assert len(made) == 1 and len(logged(part, "kss/loss")) == (
        4 if on else 1
    )  # if it is off, the first step is measured
    state = json.loads((tmp_path / "part" / "checkpoint-4" / "rksp_state.json").read_text())
    assert state["kss_decision"] is on


def test_the_guard_may_switch_on_what_auto_has_left_off(tmp_path, forecasts):
    forecasts(0.1)
    calls = []

    def loss_of(outputs, labels, num_items_in_batch=None):
        calls.append(1)
        loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return loss * float("nan") if len(calls) == 2 else loss

    run = trained(tmp_path, untrained_gpt2(), **AUTO, guard="kss", compute_loss_func=loss_of)
    assert not run.rksp.decision.on and run._the_guard.ladder.used["kss"] == 1
    assert logged(run, "kss/loss")


def test_the_guard_goes_without_that_action_if_auto_says_on(tmp_path, forecasts):
    forecasts(0.9)
    run = trained(tmp_path, untrained_gpt2(), **AUTO, guard="skip+kss")
    assert run.rksp.decision.on and "kss" not in run._the_guard.ladder.used
    assert len(logged(run, "kss/loss")) == 4


def test_what_checkpoints_say():
    assert not kept(None).on and "does not say" in kept(None).text
    assert kept({"kss_decision": True}).on and not kept({"kss_decision": False, "kss": {"dormant": False}}).on
    assert kept({"kss": {"steps": 2}}).on and kept({"kss": {"dormant": False}}).on
    for state in ({"kss": {"dormant": True}}, {"guard": {}}, {"kss": 3, "kss_decision": "yes"}):
        assert not kept(state).on


def test_it_is_decided_once_for_a_trainer(tmp_path, forecasts):
    made = forecasts(0.9)
    run = trainer(tmp_path, untrained_gpt2(), **AUTO)
    run.train()
    run.train()  # its weights are trained now
    assert made == [0.9] and run.rksp.decision.on


def test_a_forecast_of_a_run_with_kss_says_that_it_is_of_one_without(tmp_path, forecasts):
    forecasts(0.9)
    run = trained(tmp_path, untrained_gpt2(), **AUTO, risk="warn")
    assert run.rksp.said.values["kss"] and "without KSS" in run.rksp.said.text


class Stream(torch.utils.data.IterableDataset):
    """Goes on where it was, whoever reads."""

    def __init__(self):
        self.rows, self.place = token_rows().rows, 0

    def __iter__(self):
        while self.place < len(self.rows):
            self.place += 1
            yield dict(self.rows[self.place - 1])


class Noisy(torch.nn.Module):
    """Draws a number and counts, whatever the mode; users' hooks and observers do the like."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.nn.functional.dropout(x, 0.1, training=True) * self.weight


@pytest.mark.parametrize("data", [None, Stream])
def test_to_look_at_a_model_changes_nothing(tmp_path, data):
    """Dropout that is always on, a module that counts, and data that can be read once; the forecast is the real one."""
    runs = []
    for kind, settings, more in ((RKSPTrainer, RKSPTrainingArguments, AUTO), (Trainer, TrainingArguments, {})):
        model = untrained_gpt2()
        model.transformer.drop = Noisy(16)
        model.transformer.h[1].mlp.dropout = Noisy(16)
        rows = data() if data else token_rows()
        folder = tmp_path / kind.__name__
        runs.append(trained(folder, model, rows, kind, settings=settings, learning_rate=1e-6, **more))
    ours, plain = runs
    assert_same_weights(ours.model, plain.model)  # the counts of calls too
    assert not ours.rksp.decision.on and ("stream" in ours.rksp.decision.text) == (data is not None)


def tiny(name, **more):
    set_seed(0)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32,
        "vocab_size": VOCAB, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**sizes, **more}))


def looked(model):
    return network_of(model, find_stacks(model))


def test_attention_is_seen_whatever_its_projections_are_called():
    sizes = {
        "q_lora_rank": None, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    assert looked(tiny("deepseek_v3", **sizes)).gains_always
    assert looked(tiny("gemma3_text", head_dim=8)).attention


def test_a_hybrid_is_none_of_those_that_gain():
    jamba = tiny(
        "jamba", num_hidden_layers=4, attn_layer_period=4, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, num_experts=2,
        use_mamba_kernels=False,
    )  # fmt: skip
    assert not looked(jamba).attention


@needs_transformers
def test_heads_of_several_sizes(tmp_path):
    """Swin has a list of them in its configuration."""
    set_seed(0)
    config = AutoConfig.for_model(
        "swin", image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3
    )
    model = AutoModelForImageClassification.from_config(config)
    assert not looked(model).trained
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(16)]
    run = trained(tmp_path, model, rows, **AUTO)
    assert run.state.global_step == 4 and "have attention" in run.rksp.decision.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gains_of_one_are_no_proof_of_random_weights(tmp_path, dtype):
    """Norms without gains, or gains that bfloat16 cannot move: the matrices tell."""
    model = tiny("llama", hidden_size=64, intermediate_size=128)
    assert not looked(model).trained
    trained(tmp_path, model, kss="off", spectrum=False, max_steps=100, learning_rate=0.01)
    for norm in (module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm"):
        torch.nn.init.ones_(norm.weight)
    assert looked(model.to(dtype)).trained


def test_trained_weights_are_known_without_a_pass():
    """A pass of a large model takes long on a processor, and KSS is off then whatever it shows."""
    model, calls = trained_gpt2(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert network_of(model, find_stacks(model), pass_if_trained=False).trained and not calls
    assert looked(model).trained and calls


def test_norms_without_gains_are_seen():
    model = tiny("olmo")
    assert looked(model).norm == "layer" and not looked(model).trained


def test_blocks_that_no_list_shows_are_found_by_a_pass_over_random_tokens():
    set_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("xlnet", vocab_size=VOCAB, n_head=2, d_model=16, n_layer=2, d_inner=32)
    )
    with pytest.raises(CaptureError):
        find_stacks(model)
    network = network_of(model, stacks_without_data(model))
    assert network.attention and network.norm == "layer" and not network.trained


def test_blocks_that_show_with_the_first_batch_alone_are_said_to(tmp_path, forecasts, caplog):
    set_seed(0)
    config = AutoConfig.for_model(
        "patchtst", num_hidden_layers=2, d_model=16, num_attention_heads=2, ffn_dim=32, context_length=32
    )
    made = RKSPTrainer(
        model=AutoModel.from_config(config), args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    )
    assert auto.decide(made, KSSConfig(), None, None) == Decision(
        False, "KSS is off: no residual blocks were found in PatchTSTModel before the first batch."
    )


def test_a_model_with_fewer_positions_than_the_pass_has_tokens_is_seen():
    set_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=9)
    model = AutoModelForCausalLM.from_config(config)
    assert not network_of(model, find_stacks(model)).trained


def test_the_passes_before_a_run_leave_the_hidden_states_alone(tmp_path):
    """transformers hooks the blocks in the first pass that returns hidden states: once, whoever asks first."""
    for kind, more in ((Trainer, {}), (RKSPTrainer, {"kss": "auto", "risk": "warn"})):
        model = untrained_gpt2()
        model.config.output_hidden_states = True
        settings = RKSPTrainingArguments if more else TrainingArguments
        run = trained(tmp_path / kind.__name__, model, kind=kind, settings=settings, max_steps=2, **more)
        states = run.model(**{name: value[None] for name, value in token_rows(1)[0].items()}).hidden_states
        assert len(states) == model.config.n_layer + 1, kind


def test_kss_measures_as_often_as_a_share_of_the_steps_is_logged(tmp_path, forecasts):
    forecasts(0.01)
    measured = []

    class Looks(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if run.shaper.active:
                measured.append(state.global_step)

    run = trainer(tmp_path, untrained_gpt2(), kss="auto", max_steps=40, logging_steps=0.5, callbacks=[Looks()])
    run.train()
    assert measured == [0, 20]
