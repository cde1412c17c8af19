"""Spectral Alignment: the principal direction against torch.linalg.svd, statistics of planted signs, the growth of Theorem 1."""

import math

import pytest
import torch

from hf_rksp.errors import InputError, NonFiniteError
from hf_rksp.spectral.alignment import SUMS, Alignment, alignment_sums, alignments, first_principal, principal


def sums_of(x, v, mask=None):
    """Of one map."""
    return alignment_sums(alignments(x, v[None]), None if mask is None else mask[None])[0]


def planted(out, into, sigma, seed=0):
    """Noise with a principal pair that is known."""
    dice = torch.Generator().manual_seed(seed)
    u, v = (torch.nn.functional.normalize(torch.randn(n, generator=dice), dim=0) for n in (out, into))
    return 0.1 * torch.randn(out, into, generator=dice) / into**0.5 + sigma * torch.outer(u, v), u, v


def random(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (7, 7)])
def test_the_first_reading_is_that_of_the_svd(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = first_principal(weight, random(shape[1]).double(), tolerance=1e-7, most=4000)
    u, sigma, v = torch.linalg.svd(weight)
    assert float(found.sigma) == pytest.approx(float(sigma[0]), rel=1e-9)
    assert abs(float(found.u @ u[:, 0])) == pytest.approx(1, abs=1e-6)
    assert abs(float(found.v @ v[0])) == pytest.approx(1, abs=1e-6)
    assert math.isnan(float(found.growth))


def test_one_product_follows_a_matrix_that_turns_slowly():
    weight, _, _ = planted(48, 32, 2.0)
    found = first_principal(weight, random(32))
    for step in range(60):
        weight = weight + 0.01 * torch.randn(48, 32, generator=torch.Generator().manual_seed(step)) / 32**0.5
        before, found = found, principal(weight, found)
        assert float(before.v @ found.v) > 0, "the sign stays"
    _, sigma, v = torch.linalg.svd(weight)
    assert abs(float(found.v @ v[0])) > 0.999
    assert float(found.sigma) == pytest.approx(float(sigma[0]), rel=1e-3)


def test_products_of_a_map_are_as_good_as_its_matrix():
    weight, _, _ = planted(20, 30, 1.5)
    one = first_principal(weight, random(30))
    other = first_principal((lambda v: weight @ v, lambda u: weight.T @ u), random(30))
    torch.testing.assert_close(one.v, other.v)


def test_growth_is_the_change_of_the_spectral_norm_to_first_order():
    weight, u, v = planted(30, 20, 1.0)
    found = first_principal(weight, random(20), tolerance=1e-6, most=400)
    grown = principal(weight + 0.05 * torch.outer(u, v), found)
    truth = float(torch.linalg.matrix_norm(weight + 0.05 * torch.outer(u, v), 2) - torch.linalg.matrix_norm(weight, 2))
    assert float(grown.growth) == pytest.approx(truth, rel=2e-2) and truth == pytest.approx(0.05, rel=2e-2)
    other = torch.outer(torch.linalg.svd(weight)[0][:, 5], torch.linalg.svd(weight)[2][5])
    assert abs(float(principal(weight + 0.05 * other, found).growth)) < 1e-4, "growth elsewhere is none of it"


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_planted_signs(share):
    v = torch.nn.functional.normalize(random(16), dim=0)
    signs = torch.where(torch.arange(200) < 200 * share, 1.0, -1.0)
    rest = torch.randn(200, 16, generator=torch.Generator().manual_seed(4))
    rest -= torch.outer(rest @ v, v)
    x = signs[:, None] * v + rest / rest.norm(dim=1, keepdim=True)  # the alignment of each is 1 / sqrt(2)
    found = Alignment.of(sums_of(x.view(4, 50, 16), v))
    entropy = 0.0 if share == 1 else -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert found.tokens == 200 and found.majority_share == pytest.approx(share)
    assert found.sign_entropy == pytest.approx(entropy) and found.mean_absolute == pytest.approx(0.5**0.5, rel=1e-5)
    assert sum(found.histogram) == pytest.approx(1)
    assert found.histogram[17] == pytest.approx(share) and found.histogram[2] == pytest.approx(1 - share)


def test_masked_zero_and_broken_tokens_are_left_out_and_sums_add_up():
    x, v = (
        torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(5)),
        torch.nn.functional.normalize(random(8), dim=0),
    )
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = False
    x[0, 0], x[2, 1] = 0.0, math.nan
    found = Alignment.of(sums_of(x, v, mask))
    assert found.tokens == 15 - 3 - 2
    parts = sums_of(x[:1], v, mask[:1]) + sums_of(x[1:], v, mask[1:])
    torch.testing.assert_close(parts, sums_of(x, v, mask))
    assert parts.shape == (SUMS,) and Alignment.of(torch.zeros(SUMS, dtype=torch.float64)) is None


def test_several_maps_at_once_are_each_of_them():
    dice = torch.Generator().manual_seed(8)
    x, v = torch.randn(2, 6, 8, generator=dice), torch.nn.functional.normalize(torch.randn(3, 8, generator=dice), dim=1)
    mask = torch.rand(2, 6, generator=dice) < 0.7
    together = alignment_sums(alignments(x, v), mask[None])
    torch.testing.assert_close(together, torch.stack([sums_of(x, one, mask) for one in v]))


def test_the_sign_at_the_input_is_the_sign_at_the_output():
    """sign(cos(x, v)) = sign(u^T W x): the share can be read at the output of a map, less its bias."""
    weight, _, _ = planted(12, 10, 1.0)
    found = first_principal(weight, random(10), tolerance=1e-6, most=400)
    x = torch.randn(100, 10, generator=torch.Generator().manual_seed(6))
    at_input, at_output = x @ found.v, (x @ weight.T) @ found.u
    assert ((at_input > 0) == (at_output > 0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_every_precision(dtype):
    v = torch.nn.functional.normalize(random(64), dim=0)
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(7))
    one, other = (Alignment.of(sums_of(states, v)) for states in (x, x.to(dtype)))
    assert other.majority_share == pytest.approx(one.majority_share, abs=0.02)
    assert other.mean_absolute == pytest.approx(one.mean_absolute, rel=0.02)


def test_refused():
    with pytest.raises(InputError, match="products=0: pass a whole number of at least 1"):
        principal(torch.eye(3), torch.ones(3), 0)
    with pytest.raises(NonFiniteError, match="weight"):
        first_principal(torch.full((3, 3), math.inf), torch.ones(3))
