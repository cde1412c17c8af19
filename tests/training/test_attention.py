"""The attention monitor on real steps: the change of queries and keys, the largest logit, and no effect on the run."""

import gc
import json
import math
import weakref

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SegformerConfig,
    SegformerForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_rksp import AttentionConfig, AttentionMonitor
from hf_rksp.capture import attention
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import TrainingRun
from hf_rksp.training.monitors import attention as monitor
from tests.training.common import VOCAB, assert_same_weights, gpt2, hooks, padded_rows, token_rows, trained, trainer
from tests.training.test_alignment import batches


def loop(folder, model, data, lr=0.1, watched=True, change=None):
    """Train; the readings, and the queries and keys of the first block before each step."""
    before = hooks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    monitors = [AttentionMonitor(AttentionConfig(every=1))] if watched else []
    weights = []
    with TrainingRun(model, folder, len(data), monitors) as run:
        for step, batch in enumerate(data):
            if change is not None:
                change(model, step)
            weights.append([p.detach().clone() for p in model.parameters()])
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
        json.dumps(run.state_dict())
    assert hooks(model) == before
    return (read_history(folder).of("attention") if watched else ()), weights


def test_a_run_is_the_same_with_it_and_without(tmp_path):
    data, models = batches(token_rows(24).rows), [gpt2().train(), gpt2().train()]
    for model, watched in zip(models, (True, False), strict=True):
        torch.manual_seed(1)
        loop(tmp_path / str(watched), model, data, watched=watched)
    assert_same_weights(*models)


def test_a_reading_is_that_of_the_whole_product(tmp_path):
    model = gpt2(dropout=0.0).train()
    index = [name for name, _ in model.named_parameters()].index("transformer.h.1.attn.c_attn.weight")
    readings, weights = loop(tmp_path, model, batches(token_rows(8).rows))
    one, two = (step[index].T for step in weights)  # rows: queries, keys, values
    (q, k), (dq, dk) = (part[:32].view(2, 2, 8, 16) for part in (one, two - one))
    singular = torch.linalg.svdvals(dq.mT @ k + q.mT @ dk)
    share = singular.square() / singular.square().sum(-1, keepdim=True)
    ranks = torch.exp(-(share * share.clamp_min(1e-30).log()).sum(-1))
    row = next(row for row in readings[1]["layers"] if row["path"] == "transformer.h.1")
    assert row["effective_rank"] == pytest.approx(float(ranks.min()), rel=1e-3)
    assert row["update_norm"] == pytest.approx(float((two - one)[:32].norm()), rel=1e-4)
    assert "effective_rank" not in readings[0]["layers"][0], "the first reading has nothing to compare with"
    assert readings[1]["values"]["effective_rank/min"] <= row["effective_rank"] + 1e-9


def test_the_largest_logit_is_that_of_the_attention_that_is_written_out(tmp_path):
    found = []
    for kind in ("eager", "sdpa"):
        model = gpt2(dropout=0.0, attn_implementation=kind).train()
        readings, _ = loop(tmp_path / kind, model, batches(token_rows(4).rows))
        found.append(readings[0]["values"]["largest_logit"])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and math.isfinite(found[0])


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_padding_has_no_logit(tmp_path, kind):
    """More padding, and other tokens in it, change nothing: queries of padding attend to the text too."""
    found = []
    for filler, more in ((0, 0), (7, 0), (7, 5)):
        batch = batches(padded_rows(4, filler).rows)[0]
        batch = {
            name: torch.nn.functional.pad(value, (0, more), value=-100 if name == "labels" else 0)
            for name, value in batch.items()
        }
        model = gpt2(dropout=0.0, attn_implementation=kind).train()
        readings, _ = loop(tmp_path / f"{filler}{more}", model, [batch])
        found.append(readings[0]["values"]["largest_logit"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_keys_that_several_heads_share(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, num_key_value_heads=2)).train()
    readings, weights = loop(tmp_path, model, batches(token_rows(8).rows))
    names = [name for name, _ in model.named_parameters()]
    changed = [
        weights[1][names.index(f"model.layers.0.self_attn.{name}.weight")]
        - weights[0][names.index(f"model.layers.0.self_attn.{name}.weight")]
        for name in ("q_proj", "k_proj")
    ]
    norm = math.sqrt(sum(float(part.square().sum()) for part in changed))
    assert readings[1]["layers"][0]["update_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_logit_that_leaves_its_past_is_an_alarm(tmp_path):
    def grow(model, step):
        if step == 30:
            with torch.no_grad():
                model.transformer.h[0].attn.c_attn.weight[:, :32] *= 4

    loop(tmp_path, gpt2(dropout=0.0).train(), batches(token_rows(32 * 40).rows, 32), lr=1e-3, change=grow)
    events = [row for row in read_history(tmp_path).events if row["what"] == "alarm"]
    assert ("largest logit", 32) in [(row["rule"], row["step"]) for row in events]


def test_settings_are_arguments_of_a_trainer(tmp_path):
    run = trained(tmp_path, gpt2(), kss=False, spectrum=False, attention_every=2, logging_steps=1)
    logged = [row for row in run.state.log_history if "attention/largest_logit" in row]
    assert len(logged) == 2 and "attention/effective_rank/min" in logged[1]
    with pytest.raises(InputError, match="attention_every=-1"):
        trainer(tmp_path, gpt2(), attention_every=-1)


def test_a_bias_that_is_learnt_is_a_mask_with_a_gradient(tmp_path):
    """T5 hands its relative positions to torch's attention as a mask."""
    sizes = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    largest = []
    for kernel in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(
            T5Config(**sizes, decoder_start_token_id=0, attn_implementation=kernel)
        ).train()
        run = trained(tmp_path / kernel, model, kss="off", attention_every=1)
        largest.append(
            [row["attention/largest_logit"] for row in run.state.log_history if "attention/largest_logit" in row]
        )
    assert largest[0] == pytest.approx(largest[1], rel=1e-4) and len(largest[0]) == 4


def test_a_list_of_heads_is_one_for_each_stage(tmp_path, caplog):
    """Swin and PVT have one too."""
    sizes = {"hidden_sizes": [16, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "decoder_hidden_size": 16}
    per_stage = {
        "num_encoder_blocks": 2,
        "sr_ratios": [2, 1],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "mlp_ratios": [2, 2],
    }
    model = SegformerForImageClassification(SegformerConfig(**sizes, **per_stage, num_labels=3)).train()
    data = [{"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])} for _ in range(2)]
    readings, _ = loop(tmp_path, model, data)
    assert "does not give the number of heads" in caplog.text and "largest_logit" in readings[0]["values"]


def test_attention_that_cannot_be_read_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_rksp.capture.attention._largest", lambda *args, **kwargs: 1 / 0)
    readings, _ = loop(tmp_path, gpt2().train(), batches(token_rows(8).rows))
    assert "attention logits: ZeroDivisionError" in caplog.text and "largest_logit" not in readings[0]["values"]


def test_attention_that_cannot_be_read_keeps_no_tensor(monkeypatch):
    held = []

    def breaks(query, key, *args, **kwargs):
        held.append(weakref.ref(query))
        raise ValueError("no")

    monkeypatch.setattr("hf_rksp.capture.attention._largest", breaks)
    gc.disable()
    try:
        with AttentionLogits() as logits, torch.no_grad():
            gpt2().eval()(torch.zeros(1, 4, dtype=torch.long))
        assert logits.unread == "ValueError: no" and held and all(one() is None for one in held)
        assert logits.calls == len(held)
    finally:
        gc.enable()


def test_no_logit_is_the_largest_if_one_could_not_be_read(monkeypatch):
    reads, calls = attention._largest, []

    def once(*args, **kwargs):
        calls.append(1)
        return 1 / 0 if len(calls) == 2 else reads(*args, **kwargs)

    monkeypatch.setattr(attention, "_largest", once)
    with AttentionLogits() as logits, torch.no_grad():
        gpt2().eval()(torch.zeros(1, 4, dtype=torch.long))
    assert logits.on_device is not None and logits.calls == 3 and logits.largest is None


def test_a_change_that_cannot_be_computed_is_not_that_of_the_last_reading(tmp_path, monkeypatch, caplog):
    ranks, calls = monitor.effective_rank_of_grams, []

    def once(grams):
        calls.append(1)
        if len(calls) == 2:
            raise torch.linalg.LinAlgError("did not converge")
        return ranks(grams)

    monkeypatch.setattr(monitor, "effective_rank_of_grams", once)
    readings, _ = loop(tmp_path, gpt2().train(), batches(token_rows(20).rows))
    assert [row["step"] for row in readings] == [0, 1, 3, 4] and "did not converge" in caplog.text
