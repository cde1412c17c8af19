"""Whitened DMD against closed forms: linear maps whose spectrum is known, ill-conditioned and degenerate states."""

import math

import pytest
import torch

from hf_rksp.config import SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, InputError, NonFiniteError, TooFewTokensError
from hf_rksp.spectral import SecondMoments, choose_rank, spectrum, whitened_dmd
from hf_rksp.spectral.dmd import in_sample_error_bias


def moments(x, y):
    m = SecondMoments(x.shape[1])
    m.update(x, y)
    return m


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sorted_eigenvalues(values):
    return sorted(values.tolist(), key=lambda v: (round(v.real, 6), round(v.imag, 6)))


def test_linear_map_with_known_spectrum():
    known = torch.tensor([1.3, 1.0, 0.95, 0.5, -0.7, 0.1], dtype=torch.float64)
    basis = randn(6, 6)
    matrix = basis @ torch.diag(known) @ torch.linalg.inv(basis)
    x = randn(300, 6, seed=1) * torch.tensor([1, 10, 0.1, 3, 1, 0.3], dtype=torch.float64) + 4
    s = spectrum(whitened_dmd(moments(x, x @ matrix.T + 2)))
    torch.testing.assert_close(s.eigenvalues.real.sort().values, known.sort().values, rtol=1e-9, atol=1e-9)
    assert s.eigenvalues.imag.abs().max() < 1e-9
    assert s.nonlinearity_ratio < 1e-6 and s.reliable_fraction == 1
    assert s.residuals.max() < 1e-6
    assert (s.masses.expansive_mass, s.masses.near_unit_mass) == (1 / 6, 2 / 6)
    assert (s.masses.contractive_mass, s.masses.intermediate_mass) == (3 / 6, 0)
    assert s.spectral_radius == pytest.approx(1.3, rel=1e-9)


def test_rotation_has_complex_pairs_on_the_circle():
    angle = 0.4
    block = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    matrix = torch.block_diag(block, 0.5 * block)
    x = randn(200, 4)
    s = spectrum(whitened_dmd(moments(x, x @ matrix.T)))
    assert sorted(s.eigenvalues.abs().tolist()) == pytest.approx([0.5, 0.5, 1, 1], rel=1e-9)
    assert sorted(s.eigenvalues.angle().abs().tolist()) == pytest.approx([angle] * 4, rel=1e-9)


def test_planted_nonlinearity_has_the_known_ratio():
    # y = 2x + c(x^2 - 1), x standard normal: x^2 is uncorrelated with x and has variance 2, so the fit is A = 2 and
    # eta = sqrt(2 c^2) / sqrt((2 - 1)^2 + 2 c^2).
    x, c = randn(400_000, 1), 0.3
    s = spectrum(whitened_dmd(moments(x, 2 * x + c * (x**2 - 1))))
    assert s.nonlinearity_ratio == pytest.approx(math.sqrt(2 * c**2 / (1 + 2 * c**2)), rel=5e-3)
    assert s.eigenvalues.real.item() == pytest.approx(2, abs=5e-3)
    # The only mode's residual is the same error, relative to its own size: sqrt(2) c.
    assert s.residuals.item() == pytest.approx(math.sqrt(2) * c, rel=5e-3)


def test_planted_noise_has_the_known_residual():
    x, noise = randn(200_000, 3), randn(200_000, 3, seed=5)
    s = spectrum(whitened_dmd(moments(x, 0.9 * x + 0.05 * noise)))
    assert s.residuals.tolist() == pytest.approx([0.05] * 3, rel=2e-2)
    assert s.reliable_fraction == 1
    assert spectrum(whitened_dmd(moments(x, 0.9 * x + 0.2 * noise))).reliable_fraction == 0


def test_filtered_masses_count_only_reliable_modes():
    x, noise = randn(100_000, 2), randn(100_000, 2, seed=5)
    y = torch.stack([0.95 * x[:, 0], 1.5 * x[:, 1] + 0.5 * noise[:, 1]], 1)
    s = spectrum(whitened_dmd(moments(x, y)))
    assert s.masses.near_unit_mass == 0.5 and s.masses.denominator == 2
    assert s.filtered_masses.near_unit_mass == 1.0 and s.filtered_masses.denominator == 1
    assert s.reliable_fraction == 0.5


def test_identity_is_flagged_and_its_ratio_undefined():
    x = randn(100, 5)
    s = spectrum(whitened_dmd(moments(x, x)))
    assert s.uninformative and math.isnan(s.nonlinearity_ratio) and s.masses.near_unit_mass == 1
    tiny = spectrum(whitened_dmd(moments(x, x + 1e-5 * randn(100, 5, seed=2))))
    assert tiny.uninformative and tiny.relative_update == pytest.approx(1e-5, rel=0.2)
    assert not spectrum(whitened_dmd(moments(x, x + 0.05 * randn(100, 5, seed=2)))).uninformative


def test_rank_r_is_the_orthogonal_projection_onto_the_leading_directions():
    scale = torch.tensor([10.0, 5, 1, 0.1], dtype=torch.float64)
    rotation = torch.linalg.qr(randn(4, 4)).Q
    z = randn(5000, 4, seed=1)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov((z - z.mean(0)).T, correction=0))).T
    x = (z * scale) @ rotation.T
    y = (z * scale * torch.tensor([1.2, 0.7, 3, 4], dtype=torch.float64)) @ rotation.T
    op = whitened_dmd(moments(x, y), 2)
    assert op.rank == 2 and op.mode == "projected"
    assert sorted(torch.linalg.eigvals(op.matrix).real.tolist()) == pytest.approx([0.7, 1.2], rel=1e-9)
    assert op.input_energy == pytest.approx(125 / 126.01, rel=1e-9)
    energy_y = (scale * torch.tensor([1.2, 0.7, 3, 4], dtype=torch.float64)) ** 2
    assert op.output_energy == pytest.approx(float(energy_y[:2].sum() / energy_y.sum()), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e150])
def test_cutoffs_are_relative(scale):
    x = randn(100, 4)
    y = torch.tanh(x) + 0.5 * x.roll(1, 1)
    one, other = whitened_dmd(moments(x, y)), whitened_dmd(moments(scale * x, scale * y))
    assert one.rank == other.rank == 4
    a, b = (torch.linalg.eigvals(op.matrix).abs().sort().values for op in (one, other))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def test_ill_conditioned_states_drop_what_squares_cannot_resolve():
    """Condition 1e8: variances span 1e16, float64 squares resolve 1e12, so the directions below 1e-6 are dropped."""
    scale = torch.tensor([1, 1e-2, 1e-4, 1e-5, 1e-7, 1e-8], dtype=torch.float64)
    x = randn(1000, 6) * scale
    op = whitened_dmd(moments(x, 1.1 * x))
    assert op.rank == 4 and op.dropped == 2 and op.condition == pytest.approx(1e5, rel=0.2)
    # What is kept is right, also next to the cutoff.
    assert torch.linalg.eigvals(op.matrix).real.tolist() == pytest.approx([1.1] * 4, rel=1e-5)


def test_rank_deficient_duplicated_and_constant_columns():
    x = randn(200, 4)
    extra = torch.cat([x, x[:, :2], torch.full((200, 1), 7.0, dtype=torch.float64)], 1)
    op = whitened_dmd(moments(extra, 0.8 * extra))
    assert op.rank == 4 and op.dropped == 3
    assert torch.linalg.eigvals(op.matrix).real.tolist() == pytest.approx([0.8] * 4, rel=1e-8)


def test_half_precision_states_keep_the_spectrum():
    x = randn(4000, 6)
    y = x @ torch.diag(torch.linspace(0.5, 1.2, 6, dtype=torch.float64))
    s = spectrum(whitened_dmd(moments(x.half(), y.half())))
    assert s.eigenvalues.real.sort().values.tolist() == pytest.approx(torch.linspace(0.5, 1.2, 6).tolist(), abs=2e-3)
    assert 1e-5 < s.residuals.max() < 2e-3  # float16 rounding is seen as what it is: a small residual


@pytest.mark.parametrize("value", [0.0, 3.7, -1e-200, 1e30])
def test_constant_states_are_refused(value):
    x = torch.full((50, 3), value, dtype=torch.float64)
    with pytest.raises(DegenerateMomentsError, match="all 50 states"):
        whitened_dmd(moments(x, x))


def test_states_whose_squares_overflow_are_refused():
    x = randn(50, 3) * 1e200
    with pytest.raises(NonFiniteError, match="overflow"):
        whitened_dmd(moments(x, x))


def test_too_few_tokens_in_full_mode_name_the_remedy():
    x = randn(15, 8)
    with pytest.raises(TooFewTokensError, match=r"at least 16 tokens; pass more tokens, or rank=7"):
        whitened_dmd(moments(x, x), "full")
    op = whitened_dmd(moments(x, 2 * x), "auto")
    assert op.rank == 7 and op.mode == "projected" and "fewer than 2 x 8" in op.reason
    assert whitened_dmd(moments(randn(16, 8), randn(16, 8)), "auto").mode == "full"


@pytest.mark.parametrize("rank", [0, -1, 9, 2.5, True, "half"])
def test_bad_rank(rank):
    with pytest.raises(InputError, match="rank="):
        choose_rank(rank, 8, 100)


def test_rank_above_what_the_tokens_carry():
    with pytest.raises(TooFewTokensError, match="rank=6 with 10 tokens: it needs at least 12"):
        choose_rank(6, 8, 10)
    with pytest.raises(TooFewTokensError, match="at least 2"):
        choose_rank("auto", 8, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"expansive_margin": -1},
        {"residual_tolerance": math.nan},
        {"covariance_rcond": 2},
        {"replicate_precision": "float32"},
    ],
)
def test_config_is_checked_where_it_is_made(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        SpectralConfig(**bad)
    with pytest.raises(InputError, match="bands"):
        SpectralConfig(near_unit_margin=0.3)


def test_band_edges_belong_where_the_paper_puts_them():
    from hf_rksp.spectral import spectral_masses

    m = spectral_masses(torch.tensor([1.05, 1.0500001, 0.9, 0.8999999, 0.8, 0.7999999], dtype=torch.float64))
    assert (m.expansive_mass, m.near_unit_mass, m.intermediate_mass, m.contractive_mass) == (1 / 6, 2 / 6, 2 / 6, 1 / 6)
    empty = spectral_masses(torch.tensor([]))
    assert empty.denominator == 0 and math.isnan(empty.near_unit_mass)


def test_the_error_of_a_fit_is_too_low_on_its_own_samples():
    """Noise alone: the fit of r directions to n samples leaves 1 - r / n of its variance."""
    rank, samples = 20, 50
    x, noise = randn(samples, rank, seed=1), randn(samples, 400, seed=2)
    left = noise - x @ torch.linalg.lstsq(x, noise).solution
    bias = 1 - float(left.norm() / noise.norm())
    assert in_sample_error_bias(samples / rank) == pytest.approx(bias, abs=0.01)
    assert in_sample_error_bias(1.0) == 1.0 and in_sample_error_bias(1e9) == pytest.approx(0, abs=1e-8)
