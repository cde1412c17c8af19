"""The zoo's own architectures: the splines are B-splines, and models are saved, loaded and drawn as transformers' own."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

from hf_rksp.architectures import GPT2KanConfig, KanLinear, ViTRMSNormConfig
from hf_rksp.architectures.splines import b_splines
from hf_rksp.profile import profile_model

KAN = GPT2KanConfig(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=16, bos_token_id=0, eos_token_id=0)
VIT = ViTRMSNormConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)


@pytest.mark.parametrize("order", [2, 4, 8])
def test_splines_are_scipys(order):
    x = torch.linspace(-7, 7, 281, dtype=torch.float64)
    knots = -3 + 6 / 5 * np.arange(-(order - 1), 5 + order)
    ours = b_splines(x, 5, order, 3.0)
    assert ours.shape == (281, 5 + order - 1)
    for place in range(ours.shape[1]):
        theirs = BSpline.basis_element(knots[place : place + order + 1], extrapolate=False)(x.numpy())
        assert np.abs(np.nan_to_num(theirs) - ours[:, place].numpy()).max() < 1e-12
    inside = x.abs() < 3
    assert torch.allclose(ours[inside].sum(1), torch.ones(int(inside.sum()), dtype=torch.float64))


def test_gradients_of_the_layer():
    torch.manual_seed(0)
    layer = KanLinear(3, 2, 5, 4, 3.0).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(layer, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("auto", "config"), [(AutoModelForCausalLM, KAN), (AutoModelForImageClassification, VIT)], ids=["kan", "vit"]
)
def test_saved_and_loaded(auto, config, tmp_path):
    model = auto.from_config(config).eval()
    model.save_pretrained(tmp_path)
    same = auto.from_pretrained(tmp_path).eval()
    assert type(same) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is type(config)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), same.parameters(), strict=True))
    body = AutoModel.from_pretrained(tmp_path).eval()
    inputs = {"input_ids": torch.arange(8)[None]} if config is KAN else {"pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        states = [m(**inputs, output_hidden_states=True).hidden_states[1] for m in (model, same, body)]
    # Not to the bit: weights that are mapped from a file lie at other places of a cache line, where products may round
    # differently. One block of sums of at most a few hundred terms in float32.
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-5, atol=1e-5)


def test_initialised_as_the_kan_paper_says():
    model = AutoModel.from_config(GPT2KanConfig(n_embd=128, n_layer=2, n_head=2, vocab_size=100, n_positions=16))
    layer = model.h[1].mlp.expand
    assert float(layer.spline_weight.std()) == pytest.approx(0.1, rel=0.05)
    assert float(layer.base_weight.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in AutoModel.from_config(VIT).modules())


def test_the_order_changes_what_a_block_does():
    batches = [{"input_ids": torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(0))}]
    radii = []
    for order in (4, 8):
        torch.manual_seed(1)
        config = AutoConfig.for_model(**KAN.to_dict() | {"spline_order": order})
        profile = profile_model(AutoModel.from_config(config).eval(), batches, groups=0, progress=False)
        assert len(profile.layers) == 2
        radii.append(profile.layers[0].spectral_radius)
    assert radii[0] != radii[1]
