"""Whitening by Cholesky is whitening by principal directions, where nothing is dropped; elsewhere it is not used."""

import pytest
import torch

from hf_rksp.spectral import SecondMoments, dmd, spectrum, whitened_dmd
from hf_rksp.spectral.whiten import CholeskyWhitening, PrincipalWhitening, cholesky_whitening, principal_whitening


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(condition, size=20):
    directions = torch.linalg.qr(randn(size, size))[0]
    return directions * torch.logspace(0, -condition, size, dtype=torch.float64) @ directions.T


@pytest.mark.parametrize("whitening", [cholesky_whitening, lambda c, *a: principal_whitening(c, len(c), *a)])
def test_methods_do_what_they_say(whitening):
    c = covariance(3)
    c = (c + c.T) / 2
    found = whitening(c, 1e-12, 0.0)
    w = found.unwhitened(torch.eye(20, dtype=torch.float64)).T
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(w.T @ c @ w, torch.eye(20, dtype=torch.float64), **close)
    other, square = randn(20, 20, seed=1), randn(20, 20, seed=2)
    square = square @ square.T
    torch.testing.assert_close(found.congruence(other), w.T @ other @ w, **close)
    assert found.trace(square) == pytest.approx(float((w.T @ square @ w).trace()), rel=1e-9)
    assert found.condition == pytest.approx(1e3, rel=1e-9)
    assert found.variance == pytest.approx(float(c.trace()), rel=1e-12)
    assert found.inside(square) == pytest.approx(float(square.trace()), rel=1e-12)
    assert found.rank == 20


def test_cholesky_is_kept_away_from_the_cutoff():
    assert cholesky_whitening(covariance(6), 1e-12, 0.0) is not None
    assert cholesky_whitening(covariance(9.9), 1e-12, 0.0) is None
    assert cholesky_whitening(covariance(6), 1e-6, 0.0) is None
    assert cholesky_whitening(torch.zeros(3, 3, dtype=torch.float64), 1e-12, 0.0) is None
    assert cholesky_whitening(1e-40 * covariance(1), 1e-12, 1e-30) is None


def moments(x, y):
    m = SecondMoments(x.shape[1])
    m.update(x, y)
    return m


def test_quantities_do_not_depend_on_the_whitening(monkeypatch):
    x = randn(2000, 240) * torch.logspace(0, -1.5, 240, dtype=torch.float64)
    m = moments(x, x + torch.tanh(x @ randn(240, 240, seed=1)) / 4)
    one = whitened_dmd(m)
    monkeypatch.setattr(dmd, "cholesky_whitening", lambda *a: None)
    other = whitened_dmd(m)
    assert isinstance(one.whitening, CholeskyWhitening) and isinstance(other.whitening, PrincipalWhitening)
    a, b = spectrum(one), spectrum(other)
    assert a.masses == b.masses and a.filtered_masses == b.filtered_masses
    for name in ("spectral_radius", "nonlinearity_ratio", "henrici_departure", "relative_update"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-11), name
    assert a.eigenvector_condition == pytest.approx(b.eigenvector_condition, rel=1e-8)
    assert a.kreiss_constant.lower == pytest.approx(b.kreiss_constant.lower, rel=1e-5)
    torch.testing.assert_close(a.residuals.sort().values, b.residuals.sort().values, rtol=1e-9, atol=0)
    for name in ("condition", "input_energy", "output_energy", "trace_y"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-11), name


def test_a_dropped_direction_needs_principal_directions():
    x = randn(200, 6)
    x[:, 5] = x[:, 0]
    assert isinstance(whitened_dmd(moments(x, 2 * x)).whitening, PrincipalWhitening)
    assert isinstance(whitened_dmd(moments(x[:, :5], x[:, :5]), 4).whitening, PrincipalWhitening)


def test_an_operator_keeps_its_numbers_when_the_moments_go_on():
    x = randn(200, 6)
    m = moments(x, 2 * x)
    op = whitened_dmd(m)
    want = whitened_dmd(moments(x, 2 * x))
    m.update(10 + 5 * x, x)
    assert (op.trace_y, op.condition, op.output_energy) == (want.trace_y, want.condition, want.output_energy)
