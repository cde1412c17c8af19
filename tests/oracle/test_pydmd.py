"""PyDMD's exact full DMD as an oracle."""

import warnings

import numpy as np
import pytest
import torch

from hf_rksp.spectral import SecondMoments, modal_basis, spectrum, whitened_dmd

pydmd = pytest.importorskip("pydmd", reason="pip install 'hf_rksp[bench]'")


def states(n, d, seed, condition=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(
        0, -np.log10(condition), d, dtype=torch.float64
    )
    w = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    return x, x + 0.8 * torch.tanh(x @ w) + 0.3


def oracle(x, y, rank=-1):
    xc, yc = (x - x.mean(0)).T.numpy(), (y - y.mean(0)).T.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydmd.DMD(svd_rank=rank, exact=True).fit(xc, yc)


def ours(x, y, rank="full"):
    m = SecondMoments(x.shape[1])
    m.update(x, y)
    return whitened_dmd(m, rank)


def farthest(a, b):
    """Largest distance of an eigenvalue from its partner, relative to the largest modulus, under the best matching."""
    from scipy.optimize import linear_sum_assignment

    cost = np.abs(np.asarray(a)[:, None] - np.asarray(b)[None, :])
    rows, columns = linear_sum_assignment(cost)
    return cost[rows, columns].max() / np.abs(b).max()


@pytest.mark.parametrize(("n", "d"), [(200, 20), (500, 64), (1024, 200)])
@pytest.mark.parametrize("seed", [0, 1])
def test_eigenvalues_equal_pydmd(n, d, seed):
    x, y = states(n, d, seed)
    eigenvalues = modal_basis(ours(x, y).matrix).eigenvalues.numpy()
    assert farthest(eigenvalues, oracle(x, y).eigs) < 1e-8


def test_projected_eigenvalues_equal_pydmd():
    x, y = states(400, 30, 3, condition=100)
    eigenvalues = modal_basis(ours(x, y, 7).matrix).eigenvalues.numpy()
    assert farthest(eigenvalues, oracle(x, y, 7).eigs) < 1e-8


@pytest.mark.parametrize(("condition", "agreement"), [(1e2, 1e-9), (1e4, 1e-6), (1e5, 1e-4)])
def test_agreement_falls_with_the_square_of_the_condition(condition, agreement):
    """Moments square the condition: the statement that README makes, checked."""
    x, y = states(600, 40, 4, condition)
    op = ours(x, y)
    assert op.rank == 40
    assert farthest(modal_basis(op.matrix).eigenvalues.numpy(), oracle(x, y).eigs) < agreement


def test_beyond_the_cutoff_the_rank_says_so():
    x, y = states(600, 40, 4, 1e8)
    op = ours(x, y)
    assert op.rank < 40 and op.dropped == 40 - op.rank
    # PyDMD, told the same rank, finds the same modes.
    assert farthest(modal_basis(op.matrix).eigenvalues.numpy(), oracle(x, y, op.rank).eigs) < 1e-2


def test_residuals_equal_their_definition_on_the_states():
    x, y = states(300, 12, 5)
    m = SecondMoments(12)
    m.update(x, y)
    s = spectrum(whitened_dmd(m))
    xc, yc = x - x.mean(0), y - y.mean(0)
    values, vectors = np.linalg.eigh((xc.T @ xc / 300).numpy())
    whitener = vectors / np.sqrt(values) @ vectors.T  # ZCA, as in the paper
    xt, yt = whitener @ xc.T.numpy(), whitener @ yc.T.numpy()
    a = yt @ np.linalg.pinv(xt)
    eigenvalues, left = np.linalg.eig(a.conj().T)
    residuals = [
        np.linalg.norm(u.conj() @ (yt - np.conj(v) * xt)) / np.linalg.norm(u.conj() @ xt)
        for v, u in zip(eigenvalues, left.T, strict=True)
    ]
    found = np.array(sorted(zip(s.eigenvalues.abs().tolist(), s.residuals.tolist(), strict=True)))
    want = np.array(sorted(zip(np.abs(eigenvalues), residuals, strict=True)))
    np.testing.assert_allclose(found, want, rtol=1e-7)
    eta = np.linalg.norm(yt - a @ xt) / np.linalg.norm(yt - xt)
    assert s.nonlinearity_ratio == pytest.approx(eta, rel=1e-9)
    right = np.linalg.eig(a)[1]
    assert s.eigenvector_condition == pytest.approx(np.linalg.cond(right), rel=1e-7)
