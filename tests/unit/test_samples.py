"""Few tokens in many dimensions: moments in the span of the samples give the numbers of the moments themselves."""

import math

import pytest
import torch

from hf_rksp.config import SpectralConfig
from hf_rksp.errors import DegenerateMomentsError, NonFiniteError, TooFewTokensError
from hf_rksp.profile.layer import profile_layer
from hf_rksp.spectral import merge_all, whitened_dmd
from hf_rksp.spectral.samples import GroupedMoments, GroupedSamples

GROUPS = 5


def batches(tokens, d, dtype=torch.float64, seed=0):
    """(group, x, y): y is x plus something of its own, with a mean that is far from zero."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(1, -3, d, dtype=torch.float64)
    x = torch.randn(tokens, d, generator=generator, dtype=torch.float64) * scales + 30
    y = x + 0.3 * torch.randn(tokens, d, generator=generator, dtype=torch.float64) * scales.flip(0) - 5
    parts = zip(x.to(dtype).split(7), y.to(dtype).split(7), strict=True)
    return [(place % GROUPS, *pair) for place, pair in enumerate(parts)]


def both(rows, d):
    samples, moments = GroupedSamples(d, GROUPS), GroupedMoments(d, GROUPS)
    for group, x, y in rows:
        samples.update(group, x, y, None)
        moments.update(group, x, y, None)
    return samples, moments


def profile(groups, rank="auto"):
    return profile_layer(
        groups, stack="h", index=0, depth=0.0, path="h.0", rank=rank, standard_errors=True, config=SpectralConfig()
    )


@pytest.mark.parametrize("rank", ["auto", 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_profile(rank, dtype):
    samples, moments = both(batches(70, 96, dtype), 96)
    reduced = samples.moments()
    assert all(group.dim == 70 and group.width == 96 for group in reduced)
    ours, theirs = profile(reduced, rank), profile(list(moments), rank)
    for name in theirs.__dataclass_fields__:
        want, got = getattr(theirs, name), getattr(ours, name)
        if isinstance(want, float):
            assert got == pytest.approx(want, rel=1e-6, abs=1e-9), name
        elif isinstance(want, (int, str, bool)):
            assert got == want, name
    assert ours.output_energy < 0.999  # else the variance outside would not be seen
    assert torch.allclose(
        ours.eigenvalues.abs().sort().values, theirs.eigenvalues.abs().sort().values, rtol=1e-7, atol=1e-9
    )
    # A departure from normality is the root of a difference of squares: of one that is 1e-5, eps / 1e-5 = 2e-11 is lost.
    for name, error in theirs.standard_errors.items():
        assert ours.standard_errors[name] == pytest.approx(error, rel=1e-5, abs=1e-9), name


def test_more_samples_than_dimensions_become_moments_as_they_come():
    samples, moments = both(batches(70, 12), 12)
    assert samples.tokens == moments.tokens == 70
    for got, want in zip(samples.moments(), moments, strict=True):
        assert got.dim == got.width == 12
        for name in ("mean_x", "mean_y", "cxx", "cyx", "cyy"):
            assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_masked_rows_are_never_looked_at():
    group, x, y = batches(7, 96)[0]
    samples = GroupedSamples(96, GROUPS)
    bad = x.clone()
    bad[3] = math.nan
    mask = torch.ones(7)
    mask[3] = 0
    samples.update(group, bad, y, mask)
    assert samples.tokens == 6
    assert [part.count for part in samples.moments()] == [6]


@pytest.mark.parametrize("place", [1, 2])
def test_not_finite_names_the_state_and_adds_nothing(place):
    row = list(batches(7, 96)[0])
    row[place] = row[place].clone()
    row[place][2] = math.inf
    samples = GroupedSamples(96, GROUPS)
    with pytest.raises(NonFiniteError, match=f"{'xy'[place - 1]} holds NaN or inf in 1 of 7 rows"):
        samples.update(*row, None)
    assert samples.tokens == 0


def test_a_block_that_writes_into_its_input_changes_nothing():
    x, y = torch.randn(6, 16), torch.randn(6, 16)
    samples, copies = GroupedSamples(16, 1), GroupedSamples(16, 1)
    samples.update(0, x, y, None)
    copies.update(0, x.clone(), y.clone(), None)
    x.zero_()
    y.zero_()
    assert torch.equal(samples.moments()[0].cyx, copies.moments()[0].cyx)


def test_constant_states_have_no_span():
    x = torch.full((10, 96), 0.1)
    samples = GroupedSamples(96, 1)
    samples.update(0, x, x * 3, None)
    with pytest.raises(DegenerateMomentsError, match="are equal"):
        whitened_dmd(merge_all(samples.moments()))


def test_full_rank_is_refused_with_the_width_of_the_states():
    samples, _ = both(batches(70, 96), 96)
    with pytest.raises(TooFewTokensError, match="width 96"):
        whitened_dmd(merge_all(samples.moments()), "full")
