"""The verdict follows the thresholds, refuses where they do not apply, and says why."""

import dataclasses

import pytest
import torch

from hf_rksp.config import RiskConfig
from hf_rksp.errors import InputError
from hf_rksp.profile import ModelProfile, profile_model
from hf_rksp.profile.aggregate import aggregate, by_thirds
from hf_rksp.risk.thresholds import assess
from hf_rksp.spectral import standard_error


@pytest.fixture(scope="module")
def layers():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=64, n_positions=32))
    return profile_model(model, [torch.randint(0, 64, (8, 32))], progress=False).layers


def with_mass(layers, mass, half_width=0.01, **more):
    """The same layers, all with this near-unit mass and replicates around it."""
    replicates = [mass - half_width, mass + half_width] * 4
    changed = [
        dataclasses.replace(
            layer,
            near_unit_mass=mass,
            replicates=layer.replicates | {"near_unit_mass": replicates},
            standard_errors=layer.standard_errors | {"near_unit_mass": standard_error(replicates)},
            **more,
        )
        for layer in layers
    ]
    return changed


def judged(layers, source="initialised"):
    """The verdict on these layers."""
    return assess(ModelProfile({"source": source}, {}, tuple(layers), aggregate(layers), {}, {}))


@pytest.mark.parametrize(
    ("mass", "band"), [(0.1, "low"), (0.29, "low"), (0.3, "elevated"), (0.5, "elevated"), (0.51, "high"), (1.0, "high")]
)
def test_bands(layers, mass, band):
    verdict = judged(with_mass(layers, mass))
    assert verdict.band == verdict.band_by_thresholds == band
    assert verdict.score == pytest.approx(mass)
    assert verdict.interval[0] <= mass <= verdict.interval[1]


def test_interval_across_a_threshold_is_said(layers):
    assert not any("contains the threshold" in r for r in judged(with_mass(layers, 0.2, 1e-3)).reasons)
    assert any("contains the threshold 0.3" in r for r in judged(with_mass(layers, 0.29)).reasons)


def test_large_condition_is_high_risk(layers):
    verdict = judged(with_mass(layers, 0.1, eigenvector_condition=1e6))
    assert verdict.band == "high" and any("non-normal" in r for r in verdict.reasons)
    check = {c.id: c for c in verdict.checks}["eigenvector_condition"]
    assert check.outcome == "fail" and len(check.layers) == 4 and check.remedy


def test_pretrained_is_not_assessable_but_the_thresholds_are_shown(layers):
    verdict = judged(with_mass(layers, 0.7), "pretrained")
    assert verdict.band == "not_assessable" and verdict.band_by_thresholds == "high"


def test_identity_layers_are_left_out(layers):
    changed = with_mass(layers, 1.0)
    mixed = [dataclasses.replace(changed[0], uninformative=True), *with_mass(layers[1:], 0.1)]
    table = aggregate(mixed)
    assert table["near_unit_mass"]["max"] == 0.1
    assert judged(mixed).band == "low"
    identity = [dataclasses.replace(layer, uninformative=True) for layer in changed]
    verdict = judged(identity)
    assert verdict.band == "not_assessable" and verdict.score is None and "identity" in verdict.reasons[0]


def test_zero_initialised_outputs_are_never_high_risk():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=64, n_positions=32))
    for block in model.h:
        torch.nn.init.zeros_(block.attn.c_proj.weight)
        torch.nn.init.zeros_(block.mlp.c_proj.weight)
    profile = profile_model(model, [torch.randint(0, 64, (8, 32))], source="initialised", progress=False)
    assert all(layer.uninformative and layer.near_unit_mass == 1 for layer in profile.layers)
    assert assess(profile).band == "not_assessable"


def test_unknown_source_is_said(layers):
    conditions = judged(with_mass(layers, 0.1), None).conditions
    assert any("assumes random initialisation" in c for c in conditions)


def test_without_standard_errors(layers):
    bare = [dataclasses.replace(layer, replicates={}, standard_errors={}, intervals={}) for layer in layers]
    verdict = judged(bare)
    assert verdict.interval is None and any("No interval" in r for r in verdict.reasons)


def test_aggregates_and_thirds(layers):
    table, thirds = aggregate(layers), by_thirds(layers)
    values = torch.tensor([layer.spectral_radius for layer in layers], dtype=torch.float64)
    row = table["spectral_radius"]
    assert (row["mean"], row["max"], row["min"]) == pytest.approx(
        (float(values.mean()), float(values.max()), float(values.min()))
    )
    assert row["std"] == pytest.approx(float(values.std(correction=0)))
    assert list(thirds) == ["early", "middle", "late"]
    assert thirds["early"]["spectral_radius"] == pytest.approx(float(values[:2].mean()))  # blocks 0 and 1 of 4
    replicate_means = torch.tensor([layer.replicates["spectral_radius"] for layer in layers], dtype=torch.float64).mean(
        0
    )
    want = (7 / 8 * (replicate_means - replicate_means.mean()).square().sum()).sqrt()
    assert row["standard_error"] == pytest.approx(float(want))


@pytest.mark.parametrize("bad", [{"safe_near_unit_mass": 0.6}, {"high_near_unit_mass": 1.2}, {"assessable_share": 2}])
def test_thresholds_are_checked(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        RiskConfig(**bad)
