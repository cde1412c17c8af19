"""KSS and the monitor together with what else a run may use: each has its own effect, and KSS still has its."""

import contextlib
import json
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from hf_rksp.config import KSSConfig
from hf_rksp.training import SpectralShaper
from tests.training.common import (
    Gradients,
    Rows,
    assert_same_weights,
    gpt2,
    history,
    hooks,
    livelier,
    logged,
    moved,
    padded_rows,
    token_rows,
    trained,
    weights,
)
from tests.versions import needs_inner_checkpointing

#: Adam makes a full step of a gradient that is zero but for rounding (the bias of the keys).
SGD = {"optim": "sgd", "learning_rate": 0.1}
SCHEDULES = pytest.mark.parametrize("schedule", ["balanced", "paper"])


def kss(schedule):
    return {"kss_schedule": schedule, "kss_every": 1, "kss_layer_fraction": 1.0}


@SCHEDULES
@pytest.mark.parametrize("reentrant", [pytest.param(True, marks=needs_inner_checkpointing), False])
def test_gradient_checkpointing_changes_rounding_alone(reentrant, schedule, tmp_path):
    """With dropout: the second forward pass of a block has to draw what the first drew, and must not be measured."""
    plain = trained(tmp_path / "plain", gpt2(), **kss(schedule), **SGD)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} | SGD
    run = trained(tmp_path / "run", gpt2(), **kss(schedule), **options)
    assert_same_weights(run.model, plain.model, rtol=1e-3, atol=1e-5)
    for name in ("loss", "kss/loss", "kss/spectral_radius/max", "spectrum/near_unit_mass/max"):
        assert logged(run, name) == pytest.approx(logged(plain, name), rel=1e-3)
    without = trained(tmp_path / "without", gpt2(), kss=False, **options)
    assert moved(run.model, without.model) > 1e-3
    assert hooks(run.model) == hooks(without.model)  # transformers leaves one of its own


@SCHEDULES
def test_bf16_autocast(schedule, tmp_path):
    """The spectra are those of float32 to the rounding of the states; weights and gradients stay float32."""
    kept = Gradients()
    run = trained(tmp_path / "bf16", gpt2(dropout=0.0), bf16=True, callbacks=[kept], **kss(schedule))
    exact = trained(tmp_path / "fp32", gpt2(dropout=0.0), **kss(schedule))
    assert logged(run, "loss") != logged(exact, "loss")  # autocast is on
    for name in ("kss/loss", "kss/spectral_radius/max"):
        assert logged(run, name)[0] == pytest.approx(logged(exact, name)[0], rel=0.05)
    assert {g.dtype for step in kept.steps for g in step.values()} == {torch.float32}
    # KSS's own part of the first gradient is that of float32.
    parts = []
    for settings in ({"bf16": True}, {}):
        with_it, without = Gradients(), Gradients()
        trained(tmp_path, gpt2(dropout=0.0), callbacks=[with_it], max_grad_norm=0.0, **kss(schedule), **settings)
        trained(tmp_path, gpt2(dropout=0.0), callbacks=[without], max_grad_norm=0.0, kss=False, **settings)
        name = "transformer.h.0.mlp.c_fc.weight"
        parts.append((with_it.steps[0][name] - without.steps[0][name]).flatten())
    assert float(torch.cosine_similarity(*parts, dim=0)) > 0.98


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model(backend, tmp_path, monkeypatch):
    """Hooks fire in the compiled model, also in a second run of the same trainer."""
    torch.compiler.reset()
    if "ATEN_CPU_CAPABILITY" in os.environ:  # the compiler's cache does not know of it, and holds code for vectors
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    small = {"n_layer": 1, "dropout": 0.0} if backend == "inductor" else {"dropout": 0.0}  # that one takes its time
    settings = SGD | {"spectrum": False, "max_steps": 2}
    exact = trained(tmp_path / "plain", gpt2(**small), **settings)
    run = trained(tmp_path / "compiled", gpt2(**small), torch_compile=True, torch_compile_backend=backend, **settings)
    for _ in range(2):
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert logged(run, "kss/loss") == pytest.approx(logged(exact, "kss/loss"), rel=1e-3)
        assert_same_weights(run.model, exact.model, rtol=1e-3, atol=1e-5)
        assert hooks(run.model) == 0
        run.model.load_state_dict(gpt2(**small).state_dict())
        run.optimizer = None
        set_seed(run.args.seed)
        run.train()


@SCHEDULES
def test_clipping_comes_after_kss(schedule, tmp_path):
    kept, free = Gradients(), Gradients()
    run = trained(tmp_path, gpt2(dropout=0.0), callbacks=[kept], max_grad_norm=0.05, **kss(schedule))
    trained(tmp_path, gpt2(dropout=0.0), callbacks=[free], max_grad_norm=0.0, **kss(schedule))

    def norm(gradients):
        return float(torch.stack([g.norm() for g in gradients.values()]).norm())

    assert norm(free.steps[0]) > 0.05
    assert all(norm(step) == pytest.approx(0.05, rel=1e-3) for step in kept.steps)
    # What is logged is the norm with KSS in it, before clipping.
    assert logged(run, "grad_norm")[0] == pytest.approx(norm(free.steps[0]), rel=1e-4)


@SCHEDULES
def test_lora_acts_through_the_adapters(schedule, tmp_path):
    def adapted():
        model = gpt2(dropout=0.0)
        lora = LoraConfig(
            r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, init_lora_weights=False
        )
        set_seed(1)
        return get_peft_model(model, lora)

    start = weights(adapted())
    run = trained(tmp_path / "kss", adapted(), **kss(schedule))
    plain = trained(tmp_path / "plain", adapted(), kss=False)
    assert len(logged(run, "kss/loss")) == 4 and len(logged(run, "spectrum/near_unit_mass/max")) == 3
    end, other = weights(run.model), weights(plain.model)
    for name, value in start.items():
        assert torch.equal(end[name], value) == ("lora_" not in name), name
    first = [name for name in start if "h.0." in name and "lora_" in name]
    assert any(float((end[name] - other[name]).abs().max()) > 1e-4 for name in first)


@SCHEDULES
def test_content_of_the_padding_does_not_matter(schedule, tmp_path):
    runs = [trained(tmp_path, gpt2(), padded_rows(filler=token), **kss(schedule)) for token in (0, 7)]
    assert history(runs[0]) == history(runs[1])
    assert_same_weights(runs[0].model, runs[1].model)
    assert logged(runs[0], "kss/loss") == logged(runs[1], "kss/loss")
    assert logged(runs[0], "spectrum/nonlinearity_ratio/mean") == logged(runs[1], "spectrum/nonlinearity_ratio/mean")


@SCHEDULES
def test_packed_batch_has_the_spectrum_of_the_padded_one(schedule, tmp_path):
    """The same tokens in one long row: the sums over tokens, and with them the penalty, are the same."""

    def llama():
        set_seed(0)
        sizes = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        return livelier(LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, use_cache=False)))

    padded = padded_rows()
    bare = Rows(
        {name: row[name][row["attention_mask"].bool()].tolist() for name in ("input_ids", "labels")}
        for row in padded.rows
    )
    settings = kss(schedule) | {"max_steps": 1, "per_device_train_batch_size": 8, "kss_rank": 16}
    one = trained(tmp_path / "padded", llama(), padded, **settings)
    packed = trained(tmp_path / "packed", llama(), bare, data_collator=DataCollatorWithFlattening(), **settings)
    for name in ("kss/loss", "kss/spectral_radius/max", "kss/layers_above", "spectrum/spectral_radius/max"):
        assert logged(packed, name) == pytest.approx(logged(one, name), rel=2e-3), name


def test_label_smoothing(tmp_path):
    """KSS changes no loss in the balanced schedule: the first step's is the smoothed one of a run without."""
    runs = [trained(tmp_path, gpt2(), label_smoothing_factor=0.2, kss=on) for on in (True, False)]
    assert logged(runs[0], "loss")[0] == logged(runs[1], "loss")[0]
    assert logged(runs[0], "kss/task_loss") == logged(runs[0], "loss")
    assert moved(runs[0].model, runs[1].model) > 1e-4


def test_monitor_sees_all_microbatches(tmp_path):
    """One profile for each step, over the tokens of all batches that are accumulated; none of padding."""
    seen = []

    class Counts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    settings = {"gradient_accumulation_steps": 2, "max_steps": 2, "spectrum_every": 1}
    trained(tmp_path, gpt2(), padded_rows(16), callbacks=[Counts()], **settings)
    rows = [json.loads(line) for line in (tmp_path / "rksp_history.jsonl").read_text().splitlines()]
    profiles = [row for row in rows if row["kind"] == "reading"]
    assert [row["step"] for row in profiles] == [0, 1] and seen == [1, 2]
    everything = sum(int(row["attention_mask"].sum()) for row in padded_rows(16).rows)
    assert sum(row["tokens"] for row in profiles) == everything


@SCHEDULES
def test_autocast_of_an_own_loop_stops_before_the_spectra(schedule):
    """Around the whole call, or in the model alone, as accelerate does it: the same penalty to the bit."""
    logs, ids = [], token_rows(4).rows[0]["input_ids"][None]
    config = KSSConfig(schedule, rank=4, every=1, upper_threshold=0.91)
    for outside in (True, False):
        model, autocast = gpt2(dropout=0.0).train(), torch.autocast("cpu", torch.bfloat16)
        if not outside:
            model.forward = autocast(model.forward)
        with SpectralShaper(model, config) as kss:
            with autocast if outside else contextlib.nullcontext():
                loss = model(input_ids=ids, labels=ids).loss
            (loss + kss.term()).backward()
        logs.append((kss.pop_logs(), [p.grad for p in model.parameters()]))
    assert logs[0][0] == logs[1][0] and logs[0][0]["kss/loss"] > 0
    assert all(map(torch.equal, logs[0][1], logs[1][1]))
