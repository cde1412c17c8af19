"""Architecture warm-up on real steps: locked is shallow to the bit, unlocking starts learning, and resuming goes on to the bit."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_rksp import DepthWarmup, DepthWarmupConfig
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import TrainingRun
from hf_rksp.training.depth_plan import DepthPlan, group_sizes
from tests.training.common import VOCAB, assert_same_weights, gpt2, token_rows, trained, trainer
from tests.training.test_alignment import batches

LAYERS = 4
SIZES = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **SIZES, num_key_value_heads=2, use_cache=False))


def mixtral():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCAB, **SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, use_cache=False
    )
    return MixtralForCausalLM(config)


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=LAYERS, state_size=4, use_cache=False)
    )


def vit():
    torch.manual_seed(0)
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(**SIZES, **drops, image_size=8, patch_size=4, num_labels=3))


MODELS = {
    "gpt2": lambda: gpt2(0.0, n_layer=LAYERS),
    "llama": llama,
    "mixtral": mixtral,
    "mamba": mamba,
    "vit": vit,
}
ALL = pytest.mark.parametrize("kind", list(MODELS))


def batch_of(kind, seed=0):
    if kind == "vit":
        draw = torch.Generator().manual_seed(seed)
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=draw), "labels": torch.tensor([0, 1, 2, 0])}
    return batches(token_rows(4, seed).rows)[0]


def layers_of(model):
    """The list of blocks."""
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS)


def shallow(model, count):
    """The same network without its last blocks."""
    del layers_of(model)[count:]
    for name in ("n_layer", "num_hidden_layers"):
        if hasattr(model.config, name):
            setattr(model.config, name, count)
    return model


def run(model, folder, data, config, optimizer=None, state=None, stop=None, each=None):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    part = DepthWarmup(config)
    with TrainingRun(model, folder, len(data), [part], state=state, optimizer=optimizer) as open_run:
        while open_run.step_number < (stop or len(data)):
            step = open_run.step_number
            model(**data[step]).loss.backward()
            if each is not None:
                each(step, part)
            open_run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            open_run.step()
        state = json.loads(json.dumps(open_run.state_dict()))
    return state, optimizer


def plan(**changes):
    return DepthWarmupConfig(**{"schedule": "paper", "begin": 3, "interval": 2, "groups": 2, **changes})


@ALL
def test_a_locked_network_is_the_shallow_one_to_the_bit(tmp_path, kind):
    """Outputs, gradients and the weights after three steps; the locked blocks get no gradient, and no moment."""
    deep, flat = MODELS[kind]().train(), shallow(MODELS[kind]().train(), LAYERS // 2)
    data = [batch_of(kind, seed) for seed in range(8)]
    other = torch.optim.AdamW(flat.parameters(), lr=1e-2, weight_decay=0.1)
    shared = dict(flat.named_parameters())

    def each(step, part):
        loss = flat(**data[step]).loss
        other.zero_grad()
        loss.backward()
        for name, weight in deep.named_parameters():
            if name in shared:
                assert torch.equal(weight.grad, shared[name].grad), (step, name)
            else:
                assert weight.grad is None or not weight.grad.any(), (step, name)
        other.step()

    _, optimizer = run(deep, tmp_path, data, plan(begin=4, interval=2), stop=3, each=each)
    for name, weight in deep.named_parameters():
        if name in shared:
            assert torch.equal(weight, shared[name]), name
        else:
            assert weight not in optimizer.state, f"{name} has a moment"
    deep.eval(), flat.eval()
    assert torch.equal(deep(**data[0]).logits, flat(**data[0]).logits)


@ALL
def test_unlocking_is_nearly_continuous_and_starts_learning(tmp_path, kind):
    model = MODELS[kind]().train()
    data = [batch_of(kind, seed) for seed in range(14)]
    losses, gradients, weights = {}, {}, {}
    last = layers_of(model)[LAYERS - 1]

    def each(step, part):
        losses[step] = float(model(**data[0]).loss.detach())
        found = [w.grad.norm() for w in last.parameters() if w.grad is not None]
        gradients[step] = float(torch.stack(found).norm()) if found else 0.0
        weights[step] = torch.cat([w.detach().reshape(-1) for w in last.parameters() if w.ndim > 1])

    run(model, tmp_path, data, plan(begin=3, interval=2), each=each)
    opened = 5  # the second group holds the last block
    assert not any(gradients[step] for step in range(opened))
    assert any(gradients[step] > 0 for step in range(opened, opened + 5))
    moved = (weights[12] - weights[opened]).norm() / weights[opened].norm()
    assert moved > 0.05, "the block learns"
    events = [row for row in read_history(tmp_path).events if row["what"] == "unlocked"]
    assert [row["step"] for row in events] == [3, 5]
    assert [row["depth_warmup/active"] for row in read_history(tmp_path).logs] == [2] * 3 + [3] * 2 + [4] * 9


@ALL
def test_the_jump_at_unlocking_is_bounded(tmp_path, kind):
    """Output and Jacobian, relative to what a block at full initialisation would do."""
    jumps = {}
    for scale in (0.05, 1.0):
        model = MODELS[kind]().train()
        part = DepthWarmup(plan(begin=0, groups=1, seed_scale=scale))
        batch = batch_of(kind)
        with TrainingRun(model, tmp_path / str(scale), 4, [part]):
            model.eval()
            opened = logits_and_slope(model, batch)
            with torch.no_grad():
                for block in layers_of(model)[LAYERS // 2 :]:
                    for weight in (w for w in block.parameters() if w.ndim > 1):
                        weight.zero_()
            locked = logits_and_slope(model, batch)
        jumps[scale] = [float((a - b).norm() / b.norm()) for a, b in zip(opened, locked, strict=True)]
    for small, full in zip(jumps[0.05], jumps[1.0], strict=True):
        assert small < 0.03 * full + 1e-6, jumps


def logits_and_slope(model, batch):
    name = "pixel_values" if "pixel_values" in batch else "input_ids"
    if name == "input_ids":
        x = model.get_input_embeddings()(batch[name]).detach().requires_grad_()
        logits = model(inputs_embeds=x).logits
    else:
        x = batch[name].clone().requires_grad_()
        logits = model(pixel_values=x).logits
    (slope,) = torch.autograd.grad(logits.square().mean(), x)
    return logits.detach(), slope


def test_a_run_that_is_resumed_in_the_middle_goes_on_to_the_bit(tmp_path):
    data = [batch_of("llama", seed) for seed in range(10)]
    for config in (plan(), plan(ramp=3)):
        whole = llama().train()
        run(whole, tmp_path / f"whole{config.ramp}", data, config)
        cut = llama().train()
        state, optimizer = run(cut, tmp_path / f"cut{config.ramp}", data, config, stop=4)
        run(cut, tmp_path / f"cut{config.ramp}", data, config, optimizer, state)
        assert_same_weights(whole, cut)


def test_a_checkpoint_in_the_middle_loads_in_plain_transformers(tmp_path):
    one = trainer(
        tmp_path, llama(), token_rows(64), max_steps=8, save_strategy="steps", save_steps=2, kss=False, spectrum=False,
        depth_warmup="paper", depth_warmup_begin=5, depth_warmup_interval=1, warmup_steps=2,
    )  # fmt: skip
    one.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4").eval()
    flat = shallow(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4").eval(), LAYERS // 2)
    batch = batch_of("llama")
    assert torch.equal(loaded(**batch).logits, flat(**batch).logits)
    logs = [row["depth_warmup/active"] for row in one.state.log_history if "depth_warmup/active" in row]
    assert logs == [2, 2, 2, 2, 2, 3, 4, 4]


def test_a_resumed_trainer_is_the_uninterrupted_one(tmp_path):
    settings = {
        "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "kss": False, "spectrum": False, "depth_warmup": "paper",
        "depth_warmup_begin": 3, "depth_warmup_interval": 2, "depth_warmup_groups": 2,
    }  # fmt: skip
    whole = trainer(tmp_path / "whole", llama(), token_rows(64), **settings)
    whole.train()
    again = trainer(tmp_path / "again", llama(), token_rows(64), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert_same_weights(whole.model, again.model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_gradient_checkpointing(tmp_path, reentrant):
    data = [batch_of("llama", seed) for seed in range(6)]
    plain, other = llama().train(), llama().train()
    run(plain, tmp_path / "plain", data, plan())
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    other.enable_input_require_grads()
    run(other, tmp_path / "checkpointed", data, plan())
    assert_same_weights(plain, other)


def test_with_kss_and_every_monitor(tmp_path):
    one = trainer(
        tmp_path, llama(), token_rows(64), max_steps=8, depth_warmup="curvature", depth_warmup_limit=1e9, depth_warmup_dwell=1,
        curvature_every=1, alignment_every=2, attention_every=2, depth_warmup_latest=0.9,
    )  # fmt: skip
    one.train()
    history = read_history(tmp_path)
    assert not [row for row in history.events if row["what"] == "left_out"]
    assert [row["step"] for row in history.events if row["what"] == "unlocked"] == [2, 3], (
        "a low reading unlocks a group"
    )


def test_plans():
    assert group_sizes(5, 0.5, 4) == [3, 1, 1] and group_sizes(1, 0.5, 4) == [1] and sum(group_sizes(16, 0.5, 4)) == 16
    config = DepthWarmupConfig(schedule="paper")
    one = DepthPlan(config, 4, 2000, 200)
    assert list(one.steps()) == [200, 300, 400, 500]
    assert [one.due(step, None, []) for step in (0, 199, 200, 350, 1000)] == [0, 0, 1, 2, 4]
    rates = DepthPlan(DepthWarmupConfig(schedule="lr"), 4, 100, 10)
    assert [rates.due(step, rate, []) for step, rate in ((5, 0.5), (10, 1.0), (40, 0.8), (60, 0.5), (99, 0.0))] == [
        0, 0, 1, 2, 4,
    ]  # fmt: skip
    curved = DepthPlan(DepthWarmupConfig(schedule="curvature", dwell=2, latest=0.5), 4, 100, 10)
    assert curved.due(5, None, [0.1, 0.1]) == 0, "not before the learning rate has warmed up"
    assert [curved.due(step, None, [ratio]) for step, ratio in ((11, 0.1), (12, 0.9), (13, 0.1), (14, 0.1))] == [
        0,
        0,
        0,
        1,
    ]
    assert curved.due(50, None, []) == 4, "whatever the curvature is"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth_warmup": "late"}, "depth_warmup='late'"),
        ({"depth_warmup_start": 1.0}, "depth_warmup_start=1.0"),
        ({"depth_warmup": "curvature"}, "set curvature_every"),
        ({"depth_warmup": "paper", "depth_warmup_begin": 2, "depth_warmup_interval": 2}, "end with locked blocks"),
        ({"depth_warmup": "lr", "lr_scheduler_type": "constant"}, "does not fall"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_first_step(tmp_path, change, words):
    model = llama()
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, model, token_rows(16), kss=False, spectrum=False, **change).train()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "weights are as they were"


def norms(model):
    """Norm of the matrices of each block."""
    return [
        float(torch.cat([w.detach().reshape(-1) for w in b.parameters() if w.ndim > 1]).norm())
        for b in layers_of(model)
    ]


SETTINGS = {
    "kss": False, "spectrum": False, "depth_warmup": "paper", "depth_warmup_begin": 3, "depth_warmup_interval": 1,
    "depth_warmup_groups": 2, "max_steps": 8,
}  # fmt: skip


def test_training_again_after_an_interruption_unlocks_as_the_first_time(tmp_path):
    """As auto_find_batch_size does: the second run finds blocks that are zero, and knows what they were."""

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2 and not args.run_name:
                raise KeyboardInterrupt

    one = trainer(tmp_path, llama(), token_rows(64), callbacks=[Stops()], **SETTINGS)
    one.args.run_name = ""
    with pytest.raises(KeyboardInterrupt):
        one.train()
    one.args.run_name = "again"
    assert norms(one.model)[2:] == [0.0, 0.0]
    for layer in layers_of(one.model)[:2]:  # what two steps have done to the gains of active blocks is not looked at
        assert layer.input_layernorm.weight.std() > 0
    one.train()
    assert min(norms(one.model)) > 0
    with pytest.raises(InputError, match="has been trained"):
        one.train()


def test_blocks_that_are_zero_already_are_refused(tmp_path):
    model = llama()
    with torch.no_grad():
        for weight in (w for w in layers_of(model)[3].parameters() if w.ndim > 1):
            weight.zero_()
    before = norms(model)
    with pytest.raises(InputError, match="is zero already"):
        trainer(tmp_path, model, token_rows(64), **SETTINGS).train()
    assert norms(model) == before, "the others are as they were"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth_warmup_groups": 1}, "as they were"),
        ({"depth_warmup_start": 0.75}, "as they were"),
        ({"depth_warmup": "off"}, "which would stay zero"),
    ],
)
def test_a_resumption_with_other_settings_is_refused(tmp_path, change, words):
    trainer(tmp_path, llama(), token_rows(64), save_strategy="steps", save_steps=2, **SETTINGS).train()
    again = trainer(tmp_path, llama(), token_rows(64), **(SETTINGS | change))
    with pytest.raises(InputError, match=words):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_fresh_run_after_a_resumed_one_locks_again(tmp_path):
    trainer(tmp_path, llama(), token_rows(64), save_strategy="steps", save_steps=4, **SETTINGS).train()
    one = trainer(tmp_path, None, token_rows(64), model_init=llama, **SETTINGS)
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    one.train()
    logs = [row["depth_warmup/active"] for row in one.state.log_history if "depth_warmup/active" in row]
    assert logs == [2, 2, 2, 3, 4, 4, 4, 4]


def test_loading_a_shallow_checkpoint_at_the_end_is_said(tmp_path, caplog):
    one = trainer(
        tmp_path, llama(), token_rows(64), eval_dataset=token_rows(4), load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=2, save_strategy="steps", save_steps=2, metric_for_best_model="samples", greater_is_better=False,
        compute_metrics=lambda found: {"samples": one.state.global_step}, **SETTINGS,
    )  # fmt: skip
    one.train()
    assert norms(one.model)[2:] == [0.0, 0.0] and "earlier checkpoint" in caplog.text


def test_the_seed_of_the_run_draws_the_weights(tmp_path):
    found = [trained(tmp_path / str(seed), llama(), token_rows(64), seed=seed, **SETTINGS).model for seed in (1, 2)]
    assert not torch.equal(*(layers_of(model)[3].mlp.up_proj.weight for model in found))


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_kss_sees_the_shallow_network(tmp_path, schedule):
    """Its draws, its means over the layers, and the end of the stream: weights after two steps are the same to the bit."""
    settings = {
        "kss": True, "kss_schedule": schedule, "kss_every": 1, "kss_layer_fraction": 1.0, "max_steps": 2, "spectrum": False,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    flat = trained(tmp_path / "flat", shallow(MODELS["gpt2"](), LAYERS // 2), token_rows(64), **settings)
    locked = {"depth_warmup": "paper", "depth_warmup_groups": 1, "depth_warmup_begin": 2, "max_steps": 4}
    deep = trainer(tmp_path / "deep", MODELS["gpt2"](), token_rows(64), callbacks=[StopAt(2)], **(settings | locked))
    deep.train()
    shared = dict(flat.model.named_parameters())
    for name, weight in deep.model.named_parameters():
        if name in shared:
            assert torch.equal(weight, shared[name]), name
    assert flat.state.log_history[0]["kss/loss"] == deep.state.log_history[0]["kss/loss"]


class StopAt(TrainerCallback):
    """Ends a run early."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_weights_that_blocks_share_and_losses_of_routers_are_refused(tmp_path):
    model = llama()
    layers_of(model)[3].mlp = layers_of(model)[0].mlp
    with pytest.raises(InputError, match="share weights"):
        trainer(tmp_path, model, token_rows(64), **SETTINGS).train()
    routed = mixtral()
    routed.config.output_router_logits = True
    with pytest.raises(InputError, match="output_router_logits"):
        trainer(tmp_path, routed, token_rows(64), **SETTINGS).train()


def test_a_block_that_is_no_identity_gets_its_weights_back(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=VOCAB, **SIZES, hidden_dropout_prob=0.0))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(InputError, match="not the identity"):
        trainer(tmp_path, model, token_rows(64), **SETTINGS).train()
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_blocks_without_gains_and_biases_are_refused(tmp_path):
    torch.manual_seed(0)
    model = OlmoForCausalLM(OlmoConfig(vocab_size=VOCAB, **SIZES, pad_token_id=0))
    with pytest.raises(InputError, match="neither gains"):
        trainer(tmp_path, model, token_rows(64), **SETTINGS).train()


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine_with_min_lr"])
def test_a_learning_rate_that_falls_too_little_still_unlocks_every_block(tmp_path, schedule):
    more = {"lr_scheduler_kwargs": {"min_lr": 4e-3}} if "min" in schedule else {}
    settings = SETTINGS | {"depth_warmup": "lr", "depth_warmup_begin": 1, "lr_scheduler_type": schedule, **more}
    one = trained(tmp_path, llama(), token_rows(64), **settings)
    assert min(norms(one.model)) > 0


def test_trained_weights_and_peft_are_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = llama()
    with torch.no_grad():
        layers_of(model)[3].input_layernorm.weight[0] = 2.0
    with pytest.raises(InputError, match="has been trained"):
        trainer(tmp_path, model, token_rows(16), depth_warmup="paper", depth_warmup_interval=1).train()
    tuned = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="PEFT"):
        trainer(tmp_path, tuned, token_rows(16), depth_warmup="paper", depth_warmup_interval=1).train()
