"""What must not change the spectrum: rotation, scale, shift, permutation, how the tokens are cut into batches."""

import pytest
import torch

from hf_rksp.spectral import SecondMoments, spectrum, whitened_dmd


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(d=16, n=400):
    x = randn(n, d) @ (randn(d, d, seed=1) + 4 * torch.eye(d, dtype=torch.float64))
    return x, x + torch.tanh(x @ randn(d, d, seed=2)) + 0.2 * randn(n, d, seed=3)


def scalars(x, y, rank="auto", batches=1):
    m = SecondMoments(x.shape[1])
    for bx, by in zip(x.chunk(batches), y.chunk(batches), strict=True):
        m.update(bx, by)
    s = spectrum(whitened_dmd(m, rank))
    k = s.kreiss_constant
    moduli, order = s.eigenvalues.abs().sort()
    return torch.cat(
        [
            torch.tensor(
                [s.masses.near_unit_mass, s.spectral_radius, s.eigenvector_condition, s.nonlinearity_ratio],
                dtype=torch.float64,
            ),
            torch.tensor(
                [s.henrici_departure, s.relative_update, k.upper, k.disc_radius, s.reliable_fraction],
                dtype=torch.float64,
            ),
            moduli,
            s.residuals[order],
        ]
    )


#: The numbers of `scalars` that hang on the eigenvectors, which move by more than the eigenvalues.
OF_VECTORS = [2, 6]


def assert_same(one, other, tolerance=1e-10):
    """To what rounding leaves, which depends on the processor.

    Moments square the condition of the states, 49, so the operator is known to 49^2 eps = 5e-13. Eigenvalues, norms and
    residuals move by that times the condition of the eigenvectors at most, 161: 1e-10. The eigenvectors move by that over
    the distance of the closest eigenvalues, 0.003, so what hangs on them gets a hundred times as much.
    """
    bounds = torch.full_like(one, tolerance)
    bounds[OF_VECTORS] *= 100
    apart = (one - other).abs() / other.abs().clamp_min(1)
    assert (apart <= bounds).all(), apart / bounds


ROTATION = torch.linalg.qr(randn(16, 16, seed=7)).Q


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x, y: (x @ ROTATION, y @ ROTATION), id="rotation"),
        pytest.param(lambda x, y: (1e-3 * x, 1e-3 * y), id="scale"),
        pytest.param(lambda x, y: (x + 5, y - 3), id="shift"),
        pytest.param(lambda x, y: (x.flip(0), y.flip(0)), id="order of tokens"),
        pytest.param(lambda x, y: (x[:, torch.arange(15, -1, -1)], y[:, torch.arange(15, -1, -1)]), id="permutation"),
        pytest.param(lambda x, y: (torch.cat([x, x]), torch.cat([y, y])), id="every token twice"),
    ],
)
@pytest.mark.parametrize("rank", ["full", 5])
def test_spectrum_does_not_change(change, rank):
    x, y = states()
    assert_same(scalars(*change(x, y), rank), scalars(x, y, rank))


@pytest.mark.parametrize("batches", [2, 7, 400])
def test_batch_split_does_not_change_the_spectrum(batches):
    x, y = states()
    assert_same(scalars(x, y, batches=batches), scalars(x, y))


def test_any_linear_change_of_coordinates_keeps_everything():
    """Whitening takes the coordinates out, in full mode; a projection onto leading directions depends on them."""
    x, y = states()
    change = randn(16, 16, seed=9)
    # The changed states have twice the condition, so four times as much is lost.
    assert_same(scalars(x @ change, y @ change), scalars(x, y), 1e-9)
    assert not torch.allclose(scalars(x @ change, y @ change, 5), scalars(x, y, 5), rtol=1e-2)
