"""Moments do not depend on how sequences are batched; NaN and inf are traced to the block that makes them."""

import pytest
import torch

from hf_rksp.errors import NonFiniteError
from hf_rksp.profile import profile_model
from hf_rksp.spectral import merge_all
from tests.capture.models import CASES, all_moments, relative_difference

SEQUENCES = 24


def split(batch, size):
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, SEQUENCES, size)]


@pytest.fixture(params=["llama", "bert", "t5"])
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batch_size(case, size):
    model, batch = case.build(dtype=torch.float64), case.batch(SEQUENCES)
    whole, parts = (all_moments(model, batches, groups=5) for batches in ([batch], split(batch, size)))
    for layer, groups in whole.items():
        for one, other in zip(parts[layer], groups, strict=True):
            assert relative_difference(one, other) <= 1e-10
    profiles = [profile_model(model, batches, groups=5, progress=False) for batches in ([batch], split(batch, size))]
    for one, other in zip(profiles[0].layers, profiles[1].layers, strict=True):
        assert one.near_unit_mass == other.near_unit_mass
        assert one.spectral_radius == pytest.approx(other.spectral_radius, rel=1e-7)
        assert one.standard_errors == pytest.approx(other.standard_errors, rel=1e-5, abs=1e-8)


def test_order_of_sequences(case):
    model, batch = case.build(dtype=torch.float64), case.batch(SEQUENCES)
    order = torch.randperm(SEQUENCES, generator=torch.Generator().manual_seed(1))
    shuffled = {key: value[order] for key, value in batch.items()}
    one, other = (all_moments(model, split(part, 8), groups=3) for part in (batch, shuffled))
    for layer in one:
        assert relative_difference(merge_all(one[layer]), merge_all(other[layer])) <= 1e-10
    one, other = (profile_model(model, split(part, 8), groups=0, progress=False) for part in (batch, shuffled))
    assert [layer.near_unit_mass for layer in one.layers] == [layer.near_unit_mass for layer in other.layers]


def test_sequences_are_dealt_to_groups_in_turn():
    model, batch = CASES["llama"].build(dtype=torch.float64), CASES["llama"].batch(7)
    dealt = all_moments(model, split(batch, 2)[:4], groups=3)["layers", 0]
    for group in range(3):
        rows = {key: value[group::3] for key, value in batch.items()}
        assert relative_difference(dealt[group], all_moments(model, [rows])["layers", 0][0]) <= 1e-10


def test_layers_in_several_passes_are_the_same_layers(case):
    model, batch = case.build(), case.batch(SEQUENCES)
    whole = profile_model(model, [batch], groups=0, progress=False)
    parts = profile_model(model, [batch], groups=0, moment_memory=1, progress=False)
    assert [layer.path for layer in parts.layers] == [layer.path for layer in whole.layers]
    assert [layer.spectral_radius for layer in parts.layers] == [layer.spectral_radius for layer in whole.layers]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("memory", [2**29, 1], ids=["one pass", "a pass a layer"])
def test_the_block_with_a_bad_weight_is_named(value, block, memory):
    model, batch = CASES["llama"].build(), CASES["llama"].batch(8)
    with torch.no_grad():
        model.layers[block].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(NonFiniteError, match=rf"^layer layers\.{block}: y holds NaN or inf in \d+ of \d+ rows"):
        profile_model(model, [batch], groups=0, moment_memory=memory, progress=False)


def test_a_bad_embedding_is_an_input_of_the_first_block():
    model, batch = CASES["llama"].build(), CASES["llama"].batch(8)
    with torch.no_grad():
        model.embed_tokens.weight[batch["input_ids"][0, 0]] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^layer layers\.0: x holds NaN or inf"):
        profile_model(model, [batch], groups=0, progress=False)


def test_the_decoder_with_a_bad_weight_is_named():
    model, batch = CASES["t5"].build(), CASES["t5"].batch(8)
    with torch.no_grad():
        model.decoder.block[1].layer[0].SelfAttention.o.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"^layer decoder\.block\.1: y holds"):
        profile_model(model, [batch], groups=0, progress=False)
