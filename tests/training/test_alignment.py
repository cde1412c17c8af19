"""The alignment monitor on real steps: exact, without an effect on the run, silent about padding, loud about a collapse."""

import json
import math
import statistics

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hf_rksp import AlignmentConfig, AlignmentMonitor, RKSPCallback
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import TrainingRun
from tests.training.common import (
    TOKENS,
    VOCAB,
    assert_same_weights,
    gpt2,
    hooks,
    padded_rows,
    token_rows,
    trained,
    trainer,
)


def batches(rows, size=4):
    return [
        {name: torch.stack([row[name] for row in rows[i : i + size]]) for name in rows[0]}
        for i in range(0, len(rows), size)
    ]


def loop(folder, model, data, every=1, cut=1, lr=0.1, state=None, stop=None, watched=True, change=None, config=None):
    """Train; the readings of the history, and the last state."""
    before = hooks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    monitors = [AlignmentMonitor(config or AlignmentConfig(every=every))] if watched else []
    with TrainingRun(model, folder, len(data), monitors, state=state) as run:
        while run.step_number < (stop or len(data)):
            batch = data[run.step_number]
            if change is not None:
                change(model, run.step_number)
            for place in range(cut):
                if place:
                    run.microbatch()
                (model(**{name: value.chunk(cut)[place] for name, value in batch.items()}).loss / cut).backward()
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
        state = json.loads(json.dumps(run.state_dict()))
    assert hooks(model) == before
    return [row for row in read_history(folder).readings if row["monitor"] == "alignment"] if watched else [], state


def layers(reading):
    return {row["path"]: row for row in reading["layers"]}


def test_a_run_is_the_same_with_it_and_without(tmp_path):
    data = batches(padded_rows(24).rows)
    one, other = gpt2().train(), gpt2().train()
    torch.manual_seed(1)
    loop(tmp_path / "on", one, data)
    torch.manual_seed(1)
    loop(tmp_path / "off", other, data, watched=False)
    assert_same_weights(one, other)


def test_a_reading_is_that_of_the_svd_and_of_the_inputs(tmp_path):
    model = gpt2(dropout=0.0).train()
    (batch,) = batches(padded_rows(4).rows)
    inputs, name = {}, "transformer.h.1.mlp.c_fc"
    weight = model.get_submodule(name).weight.detach().clone().T
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.update(x=args[0].detach()))
    (reading,), _ = loop(tmp_path, model, [batch], config=AlignmentConfig(every=1))
    handle.remove()
    _, sigma, v = torch.linalg.svd(weight)
    kept = inputs["x"][batch["attention_mask"].bool()]
    cosine = torch.nn.functional.cosine_similarity(kept, v[0][None], dim=-1)
    row = layers(reading)[name]
    assert row["spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-3)
    assert row["mean_absolute"] == pytest.approx(float(cosine.abs().mean()), abs=0.02)
    positive = float((cosine > 0).float().mean())
    assert row["majority_share"] == pytest.approx(max(positive, 1 - positive), abs=1.5 / len(kept))
    assert reading["tokens"] == int(batch["attention_mask"].sum()), "padding is no token"


def test_what_stands_in_the_padding_changes_nothing(tmp_path):
    found = []
    for filler in (0, 7):
        data = batches(padded_rows(8, filler).rows)
        readings, _ = loop(tmp_path / str(filler), gpt2(dropout=0.0).train(), data)
        found.append([[row["histogram"] for row in reading["layers"]] for reading in readings])
    assert found[0] == found[1]


def test_accumulated_batches_are_one_batch(tmp_path):
    data = batches(token_rows(16).rows)
    readings = [loop(tmp_path / str(cut), gpt2(dropout=0.0).train(), data, cut=cut)[0] for cut in (1, 2)]
    for one, other in zip(*readings, strict=True):
        assert one["tokens"] == other["tokens"] == 4 * TOKENS
        for a, b in zip(one["layers"], other["layers"], strict=True):
            assert a["mean_absolute"] == pytest.approx(b["mean_absolute"], abs=1e-4)


def test_checkpointed_blocks_are_seen_once(tmp_path):
    data = batches(token_rows(8).rows)
    plain, _ = loop(tmp_path / "plain", gpt2(dropout=0.0).train(), data)
    model = gpt2(dropout=0.0).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, _ = loop(tmp_path / "checkpointed", model, data)
    assert [row["tokens"] for row in again] == [4 * TOKENS] * 2
    assert [row["layers"][0]["histogram"] for row in again] == [row["layers"][0]["histogram"] for row in plain]


def test_growth_is_the_change_of_the_spectral_norm(tmp_path):
    readings, _ = loop(tmp_path, gpt2(dropout=0.0).train(), batches(token_rows(120).rows), lr=0.02)
    for path in layers(readings[0]):
        norms = [layers(reading)[path]["spectral_norm"] for reading in readings]
        growth = [layers(reading)[path].get("growth") for reading in readings]
        assert growth[0] is None
        assert sum(growth[1:]) == pytest.approx(norms[-1] - norms[0], abs=0.02 * norms[0])


def test_growth_keeps_its_sign_where_all_tokens_lie_on_one_side(tmp_path):
    """Theorem 1 of arXiv:2510.04202 in a run: one token repeated aligns all inputs, and random tokens do not.

    The theorem takes the gradient along the left vector to have the sign that makes the weight grow. With the other sign, which
    occurs as well, the weight falls.
    """
    ids = torch.full((4, TOKENS), 7)
    runs = {
        "aligned": [{"input_ids": ids, "labels": ids.clone()}] * 40,
        "mixed": batches(token_rows(160).rows),
    }
    rising = {}
    for name, data in runs.items():
        readings, _ = loop(tmp_path / name, gpt2(dropout=0.0).train(), data, lr=0.02)
        rows = {path: [layers(reading)[path] for reading in readings] for path in layers(readings[0])}
        rising[name] = {
            path: sum(row["growth"] > 0 for row in found[1:]) / (len(found) - 1) for path, found in rows.items()
        }
        if name == "aligned":
            kept = [path for path in rows if statistics.median(row["majority_share"] for row in rows[path]) == 1]
            up, down = (choose(kept, key=rising[name].__getitem__) for choose in (max, min))
            aligned = rows
    for path in (up, down):
        found = aligned[path]
        change = found[-1]["spectral_norm"] - found[0]["spectral_norm"]
        assert sum(row["growth"] for row in found[1:]) == pytest.approx(change, rel=0.3)
    assert rising["aligned"][up] > 0.9, "it grows in nearly every step"
    assert rising["aligned"][down] < 0.1, "aligned too, and it falls in nearly every step"
    assert all(0.25 < share < 0.75 for share in rising["mixed"].values()), "no direction is kept"


def test_a_resumed_run_reads_what_an_uninterrupted_one_does(tmp_path):
    data = batches(token_rows(40).rows)
    whole, _ = loop(tmp_path / "whole", gpt2(dropout=0.0).train(), data)
    model = gpt2(dropout=0.0).train()
    _, state = loop(tmp_path / "cut", model, data, stop=6)
    readings, _ = loop(tmp_path / "cut", model, data, state=state)
    assert [row["step"] for row in readings] == list(range(10))
    assert [row["layers"] for row in readings] == [row["layers"] for row in whole]


def test_a_collapse_is_an_alarm_that_names_the_layer(tmp_path):
    data = batches(token_rows(32 * 40).rows, 32)
    name = "transformer.h.2.mlp.c_fc"

    def push(model, step):
        """From step 30 on the norm before the map adds a large constant along its principal direction."""
        if step == 30:
            layer = model.get_submodule("transformer.h.2")
            _, _, v = torch.linalg.svd(layer.mlp.c_fc.weight.detach().T)
            with torch.no_grad():
                layer.ln_2.bias.add_(50 * v[0])

    loop(tmp_path, gpt2(dropout=0.0).train(), data, lr=1e-4, change=push)
    events = [row for row in read_history(tmp_path).events if row["what"] == "alarm"]
    assert {row["rule"] for row in events} == {"alignment"} and events[0]["layer"] == name
    assert all(row["step"] == 32 and "h.2.mlp" in row["layer"] for row in events), "the map after it is fed by it"
    assert "100% of the tokens" in events[0]["text"] and name in events[0]["text"]


def test_a_healthy_run_has_no_alarm(tmp_path):
    loop(tmp_path, gpt2(dropout=0.0).train(), batches(token_rows(32 * 60).rows, 32), lr=0.02)
    assert [row for row in read_history(tmp_path).events if row["what"] == "alarm"] == []


def test_experts_read_the_tokens_that_they_get(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = MixtralForCausalLM(
        MixtralConfig(vocab_size=VOCAB, **sizes, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1)
    ).train()
    (reading,), _ = loop(tmp_path, model, batches(token_rows(4).rows))
    experts = [row for row in reading["layers"] if "experts[" in row["path"]]
    assert len(experts) == 6 and all(math.isfinite(row["spectral_norm"]) for row in experts)


def test_settings_are_arguments_of_a_trainer_and_reach_its_logs(tmp_path):
    run = trained(tmp_path, gpt2(), kss=False, spectrum=False, alignment_every=2, logging_steps=1)
    logged = [row for row in run.state.log_history if "alignment/majority_share/max" in row]
    assert len(logged) == 2 and 0.5 <= logged[0]["alignment/majority_share/max"] <= 1
    history = read_history(run.rksp.path)
    assert history.quantities["alignment/majority_share/max"].title.startswith("share of tokens")
    for wrong in ({"alignment_every": -1}, {"alignment_limit": 0}, {"alignment_dwell": 0}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"{name}="):
            trainer(tmp_path, gpt2(), **wrong)


def test_a_callback_that_is_given_gets_the_monitor_of_the_arguments(tmp_path):
    run = trained(tmp_path, gpt2(), kss=False, alignment_every=2, callbacks=[RKSPCallback()])
    assert {row["monitor"] for row in read_history(run.rksp.path).readings} == {"spectrum", "alignment"}


def test_without_readings_it_is_the_trainer_to_the_bit(tmp_path):
    one = trained(tmp_path / "one", gpt2(), kss=False, spectrum=False, alignment_every=1)
    other = trained(tmp_path / "other", gpt2(), kss=False, spectrum=False)
    assert other.rksp is None
    assert_same_weights(one.model, other.model)
