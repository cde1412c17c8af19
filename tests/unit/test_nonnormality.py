"""kappa(V), Henrici's departure, left eigenvectors and the Kreiss bracket against closed forms and brute force."""

import math

import pytest
import torch

from hf_rksp.spectral import kreiss_constant, modal_basis


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bracket(matrix):
    modal = modal_basis(matrix)
    return kreiss_constant(matrix, modal, modal.condition)


def brute_force(matrix, radius, angles=90, distances=60):
    best = 1.0
    for distance in torch.logspace(-4, 1, distances, dtype=torch.float64):
        for angle in torch.linspace(0, math.pi, angles, dtype=torch.float64):
            z = torch.polar(radius * (1 + distance), angle)
            smallest = torch.linalg.svdvals(z * torch.eye(len(matrix), dtype=torch.complex128) - matrix)[-1]
            best = max(best, float((z.abs() - radius) / smallest))
    return best


def test_real_arithmetic_agrees_with_the_complex_decomposition():
    matrix = randn(31, 31)
    modal = modal_basis(matrix)
    _, vectors = torch.linalg.eig(matrix)
    singular = torch.linalg.svdvals(vectors)
    assert modal.condition == pytest.approx(float(singular[0] / singular[-1]), rel=1e-9)
    left = torch.linalg.inv(vectors)
    torch.testing.assert_close(modal.left_norms(), left.abs().square().sum(1).sqrt(), rtol=1e-9, atol=0)
    gram = randn(31, 31, seed=1)
    gram = gram @ gram.T
    quadratic = ((left @ gram.to(left.dtype)) * left.conj()).sum(1).real
    torch.testing.assert_close(
        modal.left_quadratic(lambda rows: ((rows @ gram) * rows).sum(1)), quadratic, rtol=1e-9, atol=0
    )
    columns = torch.complex(randn(31, 3), randn(31, 3, seed=2))
    for ours, theirs in (
        (modal.to_modal(columns), left @ columns),
        (modal.from_modal(columns), vectors @ columns),
        (modal.to_modal_adjoint(columns), vectors.conj().T @ columns),
        (modal.from_modal_adjoint(columns), left.conj().T @ columns),
    ):
        # Rows of a pair may be scaled by a common phase against torch's vectors: compare through A itself.
        assert ours.shape == theirs.shape
        torch.testing.assert_close(torch.linalg.vector_norm(ours), torch.linalg.vector_norm(theirs), rtol=1e-9, atol=0)
    back = modal.from_modal(modal.eigenvalues[:, None] * modal.to_modal(columns))
    torch.testing.assert_close(back, matrix.to(columns.dtype) @ columns, rtol=1e-9, atol=1e-9)
    adjoint = modal.from_modal_adjoint(modal.eigenvalues.conj()[:, None] * modal.to_modal_adjoint(columns))
    torch.testing.assert_close(adjoint, matrix.T.to(columns.dtype) @ columns, rtol=1e-9, atol=1e-9)


def test_symmetric_matrix_is_normal():
    matrix = randn(20, 20)
    matrix = (matrix + matrix.T) / 20
    b = bracket(matrix)
    assert modal_basis(matrix).condition == pytest.approx(1, rel=1e-9)
    assert 1 <= b.lower <= b.upper * (1 + 1e-9) and b.upper == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("coupling", [0.5, 5.0, 50.0])
def test_two_by_two_closed_forms(coupling):
    # Eigenvalues .9 and .5 with eigenvectors (1, 0) and (c, -.4) / norm: kappa(V) = cot(theta / 2) for their angle theta.
    matrix = torch.tensor([[0.9, coupling], [0.0, 0.5]], dtype=torch.float64)
    theta = math.atan(0.4 / coupling)
    b = bracket(matrix)
    assert b.upper == pytest.approx(1 / math.tan(theta / 2), rel=1e-9)
    truth = brute_force(matrix, 1.0)
    assert b.lower == pytest.approx(truth, rel=0.05) and b.lower <= b.upper
    assert b.disc_radius == 1


@pytest.mark.parametrize("size", [6, 24])
@pytest.mark.parametrize("radius", [0.7, 0.98, 1.6])
def test_lower_end_is_true_and_close_to_brute_force(size, radius):
    matrix = randn(size, size, seed=size)
    matrix = matrix * (radius / float(torch.linalg.eigvals(matrix).abs().max()))
    b = bracket(matrix)
    truth = brute_force(matrix, b.disc_radius)
    assert b.disc_radius == pytest.approx(max(1.0, radius), rel=1e-9)
    assert 0.85 * truth <= b.lower <= 1.02 * max(truth, _dominant_condition(matrix, b.disc_radius))
    assert b.lower <= b.upper


def _dominant_condition(matrix, radius):
    modal = modal_basis(matrix)
    on_disc = modal.eigenvalues.abs() >= radius * (1 - 1e-12)
    return float(modal.left_norms()[on_disc].max()) if on_disc.any() else 1.0


def test_eigenvalue_outside_the_circle_makes_the_plain_constant_infinite():
    b = bracket(torch.diag(torch.tensor([1.5, 0.3], dtype=torch.float64)))
    assert b.disc_radius == 1.5 and b.lower == pytest.approx(1) and b.upper == pytest.approx(1)


def test_defective_matrix_has_no_finite_condition():
    b = bracket(torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64))
    assert b.upper > 1e12 and b.lower >= 1


def test_henrici_departure_of_a_known_matrix():
    from hf_rksp.spectral import SecondMoments, spectrum, whitened_dmd

    # A on exactly white data: departure^2 = ||A||_F^2 - sum |lambda|^2 = c^2.
    matrix = torch.tensor([[0.9, 0.6], [0.0, 0.5]], dtype=torch.float64)
    x = randn(500, 2)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 500)).T
    m = SecondMoments(2)
    m.update(x, x @ matrix.T)
    s = spectrum(whitened_dmd(m))
    assert s.henrici_departure == pytest.approx(math.sqrt(0.36 / float(matrix.square().sum())), rel=1e-9)
    assert s.relative_update == pytest.approx(float((matrix - torch.eye(2)).norm()) / math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("values", [[1.5] * 5, [1.0] * 5, [2, 2, 2, 1, 0.5, 0.3]])
def test_repeated_eigenvalues_on_the_disc_do_not_break_the_lower_end(values):
    size = len(values)
    basis = torch.eye(size, dtype=torch.float64) + 0.2 * randn(size, size, seed=3)
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ torch.linalg.inv(basis)
    b = bracket(matrix)
    assert 1 <= b.lower <= 1.03 * brute_force(matrix, b.disc_radius)
