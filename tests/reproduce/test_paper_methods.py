"""The methods of the paper's tables do what their sources say."""

import math

import pytest
import torch
from torch import nn

from hf_rksp import KSSConfig
from hf_rksp.spectral.penalties import shaping_penalty
from scripts.reproduce.architecture_warmup.attention import written_out
from scripts.reproduce.evidence import tables as evidence
from scripts.reproduce.evidence.tables import beats
from scripts.reproduce.harness.intervals import fewer
from scripts.reproduce.kss_default.tasks import TASKS
from scripts.reproduce.paper_methods.methods import clip_queries_and_keys, optimizer_of, prepare
from scripts.reproduce.paper_methods.penalties import PENALTIES
from scripts.reproduce.paper_methods.tables import settings_of, tables
from scripts.reproduce.paper_methods.train import Run, cost, train


def network(method):
    torch.manual_seed(0)
    model = TASKS["recall"].network()
    prepare(model, method, torch.Generator().manual_seed(0))
    return model


IDS = torch.arange(18).reshape(2, 9)


def test_a_method_that_changes_nothing_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    plain = TASKS["recall"].network()
    assert torch.allclose(plain(input_ids=IDS).logits, network({})(input_ids=IDS).logits, atol=1e-6)
    assert torch.allclose(
        plain(input_ids=IDS).logits, network({"qk_clip": 100.0})(input_ids=IDS).logits, atol=1e-6
    )  # attention that is written out


def test_spectral_norm_makes_every_matrix_of_a_block_one_in_norm():
    model = network({"weights": "spectral norm"}).train()
    for _ in range(30):  # power iteration
        model(input_ids=IDS)
    for block in model.transformer.h:
        assert float(torch.linalg.matrix_norm(block.mlp.c_fc.weight.detach(), 2)) == pytest.approx(1, rel=0.05)


def test_weight_norm_keeps_the_function_and_has_a_gain_for_each_output():
    assert torch.allclose(
        network({"weights": "weight norm"})(input_ids=IDS).logits, network({})(input_ids=IDS).logits, atol=1e-5
    )
    gain = network({"weights": "weight norm"}).transformer.h[0].mlp.c_fc.parametrizations.weight.original0
    assert gain.shape == (1, 512)


def test_scaled_embeddings_have_the_variance_that_the_paper_asks_for():
    model = network({"embedding": "scale"})
    states = model(input_ids=torch.arange(288).reshape(32, 9) % 32, output_hidden_states=True).hidden_states
    assert float(states[0].detach().var()) == pytest.approx(1, rel=0.1)


def test_qk_norm_makes_queries_and_keys_of_unit_size():
    model = network({"attention": "norm"})
    seen = []
    model.transformer.h[0].attn.q_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(input_ids=IDS)
    assert torch.allclose(seen[0].square().mean(-1), torch.ones(()), atol=0.1)


def test_qk_clip_brings_the_largest_logit_to_its_limit():
    model = network({"qk_clip": 1.0})
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight *= 300
    model(input_ids=IDS)
    before = model.transformer.h[0].attn.largest_logit
    assert before.max() > 1
    clip_queries_and_keys(model, 1.0)
    model(input_ids=IDS)
    after = model.transformer.h[0].attn.largest_logit
    assert torch.allclose(after, before.clamp(max=1.0), rtol=1e-3, atol=1e-5)


def test_the_largest_logit_is_that_of_what_a_token_may_see():
    query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    query[0, 0, 0, 0] = key[0, 0, 2, 0] = 5.0  # the first token would look at the last one
    query[0, 0, 2, 1] = key[0, 0, 1, 1] = 2.0
    module = nn.Module()
    written_out(module, query, key, key, None, 1.0)
    assert module.largest_logit.tolist() == [4.0]


def test_mup_scales_learning_rates_logits_and_attention_with_the_width():
    model, plain = network({"optimizer": "mup"}), network({})
    optimizer = optimizer_of(model, {"optimizer": "mup"}, 0.004, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.004]
    assert [group["lr"] * group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([4e-5, 4e-5])
    assert model.transformer.h[0].attn.width_scale == 0.5
    assert torch.allclose(2 * model.transformer.h[0].mlp.c_fc.weight, plain.transformer.h[0].mlp.c_fc.weight)
    seen = []
    model.transformer.h[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(input_ids=IDS).logits
    states = seen[0] if torch.is_tensor(seen[0]) else seen[0][0]
    assert torch.allclose(logits, states @ model.transformer.wte.weight.T / 4, atol=1e-6)


def test_muon_moves_every_weight_and_its_schedule():
    with Run({"optimizer": "muon"}, 0.001, 1.0, 0) as run:
        before = {name: weight.clone() for name, weight in run.model.named_parameters()}
        run.step()
        moved = {name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
        rates = [group["lr"] for part in run.optimizer.parts for group in part.param_groups]
    assert moved == set(before)
    assert rates == pytest.approx([0.001 * 2 / 50] * 2)


def test_the_jacobian_penalty_of_a_block_that_adds_nothing_is_zero():
    model = network({"penalty": "jacobian"})
    for block in model.transformer.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            nn.init.zeros_(projection.weight)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert float(PENALTIES["jacobian"](None, None, states, torch.Generator().manual_seed(0))) < 1e-12


def test_a_learning_rate_is_a_setting_and_plain_runs_with_another_limit_stand_in_it():
    row = {
        "lost_by_loss": None,
        "lost_by_gradient": None,
        "loss": 1.0,
        "accuracy": 0.5,
        "near_unit_mass": [0.5, 0.6, 0.7],
    }
    rows = [
        row | {"method": method, "lr": lr, "clip": clip, "seed": seed}
        for method, lr, clip in (
            ("plain", 0.002, None), ("LAMB", 0.002, None), ("plain", 0.002, 1.0), ("plain", 0.004, 1.0), ("LAMB", 0.004, 1.0),
            ("plain", 0.004, 0.5),
        )
        for seed in (300, 301)
    ]  # fmt: skip
    first, second = settings_of(rows)
    assert (first.name, list(first.runs)) == ("0.002 without clipping", ["plain", "LAMB", "clipping at 1.0"])
    assert (second.name, list(second.runs)) == ("0.004 with clipping at 1", ["plain", "LAMB", "clipping at 0.5"])
    assert tables(rows, {}).count("| 0 of 2 |") == 6


def outcome(method, lr, seed, lost=False, loss=1.0):
    return {
        "method": method, "lr": lr, "clip": 1.0, "seed": seed, "lost_by_loss": 40 if lost else None, "lost_by_gradient": None,
        "loss": None if lost else loss, "accuracy": None if lost else 0.5, "near_unit_mass": [0.5, None, 0.6], "skipped": 0,
    }  # fmt: skip


def test_an_optimizer_with_kss_stands_beside_the_one_without_at_its_own_rate():
    rows = [outcome("LAMB", lr, seed, lost=lr > 0.02) for lr in (0.016, 0.025) for seed in range(4)]
    rows += [outcome("KSS, paper .15 + LAMB", 0.025, seed) for seed in range(4)]
    rows += [outcome("LAMB, long warm-up", 0.025, seed, lost=seed < 2) for seed in range(4)]
    rows += [outcome("Lion", 1e-5, seed, loss=2.77) for seed in range(4)]
    lines = [line.split(" | ") for line in tables(rows, {}).splitlines()[2:]]
    found = {(line[0].strip("| "), line[2]): line for line in lines}
    assert found["KSS, paper .15 + LAMB", "0.025"][7] == "0.029"  # two of the 70 ways
    assert found["LAMB, long warm-up", "0.025"][7] == "0.43"
    assert found["LAMB", "0.025"][7] == "-" and found["LAMB", "0.025"][3] == "4 of 4"
    assert found["Lion", "1e-05"][3] == "0 of 4" and found["Lion", "1e-05"][6] == "4", "kept, and nothing learnt"


def test_a_run_that_is_lost_by_its_gradient_alone_is_counted_apart():
    rows = [outcome("plain", 0.002, seed, lost=seed == 0) for seed in range(4)]
    rows += [outcome("QK-norm", 0.002, seed) | {"lost_by_gradient": 30 if seed else None} for seed in range(4)]
    counts = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:5] for line in tables(rows, {}).splitlines()[4:6]}
    assert (counts["plain"][0], counts["plain"][2:]) == ("1 of 4", ["0", "1"])
    assert (counts["QK-norm"][0], counts["QK-norm"][2:]) == ("3 of 4", ["3", "3"])


def test_the_cost_of_a_run_that_ends_is_refused():
    with pytest.raises(RuntimeError, match="a run ended at step"):
        cost({}, {}, 10.0, 0, 1, None)


def test_a_method_that_learns_nothing_beats_none():
    lost = {seed: outcome("plain", 0.003, seed, lost=seed < 20) for seed in range(24)}
    good = {seed: outcome("KSS, paper .15", 0.003, seed) for seed in range(24)}
    idle = {seed: outcome("Lion", 0.003, seed, loss=2.77) for seed in range(24)}
    assert beats(good, lost) and not beats(idle, lost) and not beats(good, idle) and not beats(good, good)


def test_after_13_seeds_no_further_run_could_decide_for_kss():
    """Why most cells end at 16 seeds: if KSS kept every run to come, and every rival lost all of them."""
    planned, first = 24, range(300, 313)
    beaten = {}
    for setting in evidence.settings():
        mine, of = evidence.counts({seed: row for seed, row in setting.runs[evidence.KSS].items() if seed in first})
        for name in (*evidence.OTHERS, *evidence.TERMS, *evidence.PENALTIES):
            theirs, made = evidence.counts({seed: row for seed, row in setting.runs[name].items() if seed in first})
            assert of == made == len(first)
            beaten[setting.lr, name] = fewer((mine, planned), (theirs + planned - made, planned)) < 0.05
    comparisons = [won for (_, name), won in beaten.items() if name in evidence.OTHERS]
    optimizers = len(evidence.OPTIMIZERS)  # as if KSS won both
    assert comparisons.count(False) == 8 and comparisons.count(True) + optimizers <= (len(comparisons) + optimizers) / 2
    near = evidence.TERMS[1]
    assert not beaten[0.002, near] and not any(beaten[0.002, name] for name in evidence.PENALTIES), (
        "no branch of Table 6"
    )


def test_a_row_has_the_mass_at_first_early_and_before_the_loss():
    lost = train({}, 0.05, None, 0, 40)
    assert lost["lost_by_loss"] is not None or lost["lost_by_gradient"] is not None
    kept = train({}, 1e-4, 1.0, 0, 27)
    assert all(0 <= mass <= 1 for mass in kept["near_unit_mass"]) and len(kept["near_unit_mass"]) == 3
    assert len(lost["near_unit_mass"]) == 3 and lost["near_unit_mass"][0] == kept["near_unit_mass"][0]


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_a_penalty_has_a_gradient_and_falls_if_it_is_followed(name):
    method = {"penalty": name, "penalty_weight": 1.0}
    model = network(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    values = []
    for _ in range(5):
        draw = torch.Generator().manual_seed(0)
        output = model(input_ids=IDS, output_hidden_states=True)
        loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), IDS.flatten())
        penalty = PENALTIES[name](loss, output.logits, output.hidden_states, draw)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(float(penalty.detach()))
    assert math.isfinite(values[-1]) and values[-1] < values[0]


def test_the_terms_of_kss_alone_add_up_to_the_whole():
    moduli = torch.tensor([[0.3, 0.95, 1.3, 2.0]], dtype=torch.float64)
    whole, unstable, near = (
        KSSConfig(schedule="paper", **settings)
        for settings in (
            {"weight": 0.15},
            {"weight": 0.15, "near_unit_weight": 0},
            {"weight": 1.5e-7, "near_unit_weight": 1e6},
        )
    )
    values = [float(one.weight * shaping_penalty(moduli, one)) for one in (whole, unstable, near)]
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-5)
