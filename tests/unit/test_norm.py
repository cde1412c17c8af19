"""Lanczos iteration finds what the full decompositions find, or leaves it to them."""

import pytest
import torch

from hf_rksp.spectral import norm
from hf_rksp.spectral.norm import largest_eigenvalue, spectral_norm


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size):
    return torch.linalg.qr(randn(size, size))[0]


def with_singular_values(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return orthogonal(len(values)) * values @ torch.linalg.qr(randn(len(values), len(values), seed=1))[0]


@pytest.mark.parametrize("gap", [0.5, 1e-2, 1e-4, 1e-9, 0.0])
def test_equals_the_decomposition_whatever_the_gap(gap):
    values = torch.linspace(0.1, 1, 300, dtype=torch.float64)
    values[-1] = values[-2] * (1 + gap)
    matrix = with_singular_values(values)
    close = {"rel": 1e-8 if 0 < gap < 1e-6 else 1e-12}  # the iteration does not tell such twins apart
    assert spectral_norm(matrix) == pytest.approx(float(values[-1]), **close)
    assert largest_eigenvalue(matrix @ matrix.T) == pytest.approx(float(values[-1] ** 2), **close)


def test_equal_singular_values_end_the_iteration():
    assert spectral_norm(3 * orthogonal(256)) == pytest.approx(3, rel=1e-12)


def test_the_iteration_is_what_answers(monkeypatch):
    monkeypatch.setattr(norm.torch.linalg, "svdvals", None)
    matrix = randn(256, 256)
    matrix[:, 0] *= 10
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.svd(matrix).S[0]), rel=1e-12)


@pytest.mark.parametrize("size", [3, 256])
def test_squares_that_overflow_are_left_to_the_decomposition(size):
    matrix = randn(size, size) * 1e200
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-12)


def test_what_does_not_converge_is_left_to_the_decomposition(monkeypatch):
    monkeypatch.setattr(norm, "_STEPS", 4)
    matrix = randn(256, 256)
    assert spectral_norm(matrix) == float(torch.linalg.svdvals(matrix)[0])
