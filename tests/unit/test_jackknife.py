"""The jackknife is right where the answer is known, and covers at its nominal rate."""

import math

import pytest
import torch

from hf_rksp.errors import InputError
from hf_rksp.profile.layer import interval
from hf_rksp.spectral import SecondMoments, jackknife, standard_error


def groups_of(x, count):
    groups = []
    for part in x.chunk(count):
        m = SecondMoments(1)
        m.update(part, part)
        groups.append(m)
    return groups


def test_error_of_a_mean_is_the_textbook_one():
    x = torch.randn(12, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = jackknife(groups_of(x, 12), lambda m: {"mean": float(m.mean_x)})["mean"]
    assert standard_error(values) == pytest.approx(float(x.std() / math.sqrt(12)), rel=1e-10)


def test_interval_covers_at_its_nominal_rate():
    hits = 0
    for seed in range(400):
        x = torch.randn(80, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).exp()
        means = jackknife(groups_of(x, 8), lambda m: {"mean": float(m.mean_x)})["mean"]
        low, high = interval("mean", float(x.mean()), means)
        hits += low <= math.exp(0.5) <= high
    assert 0.85 <= hits / 400 <= 0.98  # nominal .95; the log-normal's skew costs some


def test_too_few_and_non_finite():
    with pytest.raises(InputError, match="at least two"):
        standard_error([1.0])
    assert math.isnan(standard_error([1.0, math.inf, 2.0]))


def test_shares_stay_shares_and_conditions_stay_positive():
    replicates = [0.0, 0.04] * 4
    assert interval("near_unit_mass", 0.02, replicates)[0] == 0
    assert interval("spectral_radius", 0.02, replicates)[0] < 0
    low, high = interval("eigenvector_condition", 100.0, [50.0, 200.0] * 4)
    assert 0 < low < 100 < high and low * high == pytest.approx(100**2)
