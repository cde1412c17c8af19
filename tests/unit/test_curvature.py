"""Lanczos against closed forms and against ARPACK on the same operator."""

import doctest
import math

import numpy
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from hf_rksp.errors import InputError, NonFiniteError
from hf_rksp.spectral import curvature, largest_eigenvalue


def vector(size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    basis = torch.linalg.qr(vector(len(values) ** 2, seed).view(len(values), -1)).Q
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


def laplacian(v):
    """Second difference with zero ends: eigenvalues ``2 - 2 cos(k pi / (n + 1))``."""
    padded = torch.cat([torch.zeros_like(v[:1]), v, torch.zeros_like(v[:1])])
    return 2 * v - padded[:-2] - padded[2:]


def test_a_closed_form_to_a_millionth():
    size = 60
    result = largest_eigenvalue(laplacian, vector(size), tolerance=1e-5, max_products=400, basis=12)
    assert result.converged and result.products > 12  # so that it has begun anew
    assert result.value == pytest.approx(2 - 2 * math.cos(size * math.pi / (size + 1)), rel=1e-6)


@pytest.mark.parametrize(
    ("spectrum", "largest"),
    [([-100.0, -3.0, 1.0, 5.0], 5.0), ([-100.0, -3.0, -1.0], -1.0), ([-4.0, 0.0, 0.0], 0.0), ([7.0, 7.0, 7.0], 7.0)],
    ids=["a larger negative one", "none positive", "zero", "all equal"],
)
def test_the_largest_with_its_sign(spectrum, largest):
    matrix = with_spectrum(spectrum)
    result = largest_eigenvalue(lambda v: matrix @ v, vector(len(spectrum)), tolerance=1e-9)
    assert result.value == pytest.approx(largest, abs=1e-9) and result.converged
    assert result.products <= len(spectrum)


def test_a_singular_operator_ends():
    """The value is rounding, so that no share of it is reached."""
    matrix = with_spectrum([*torch.linspace(-5, -1, 20).tolist(), *[0.0] * 10])
    result = largest_eigenvalue(lambda v: matrix @ v, vector(30), tolerance=1e-6)
    assert result.converged and result.value == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("basis", [4, 7, 16, 200])
def test_agrees_with_arpack_whatever_is_held(basis):
    values = numpy.random.default_rng(0).normal(size=150).tolist()
    matrix = with_spectrum([*values, -20.0, 3.5, 3.4])
    operator = LinearOperator(matrix.shape, matvec=lambda v: matrix.numpy() @ v, dtype=numpy.float64)
    expected = eigsh(operator, k=1, which="LA", tol=1e-12, return_eigenvectors=False)[0]
    result = largest_eigenvalue(lambda v: matrix @ v, vector(153), tolerance=1e-7, max_products=1000, basis=basis)
    assert result.converged and result.value == pytest.approx(expected, rel=1e-9)


def test_residual_is_that_of_the_vector():
    matrix = with_spectrum([-5.0, *torch.linspace(0, 1, 40).tolist()])
    for products in (3, 9, 20, 35):
        result = largest_eigenvalue(lambda v: matrix @ v, vector(41), tolerance=1e-12, max_products=products, basis=8)
        true = float((matrix @ result.vector - result.value * result.vector).norm())
        assert result.products == products and not result.converged
        assert result.residual == pytest.approx(true, rel=1e-6)
        assert result.value <= 1 and float(result.vector.norm()) == pytest.approx(1)


def test_a_start_near_the_vector_saves_products():
    matrix = with_spectrum([-5.0, *torch.linspace(0, 1, 60).tolist(), 1.2])
    cold = largest_eigenvalue(lambda v: matrix @ v, vector(62), tolerance=1e-3)
    moved = matrix + 1e-3 * with_spectrum(torch.linspace(-1, 1, 62).tolist(), seed=1)
    warm = largest_eigenvalue(lambda v: moved @ v, cold.vector, tolerance=1e-3)
    assert warm.converged and warm.products < cold.products / 2
    assert warm.value == pytest.approx(float(torch.linalg.eigvalsh(moved)[-1]), rel=1e-4)


def test_float32_vectors_give_five_digits():
    matrix = with_spectrum([-5.0, *torch.linspace(0, 1, 60).tolist(), 2.0]).float()
    result = largest_eigenvalue(lambda v: matrix @ v, vector(62, dtype=torch.float32), tolerance=1e-3)
    assert result.converged and result.vector.dtype == torch.float32
    assert result.value == pytest.approx(2, rel=1e-5)


def test_a_factor_and_a_shift_pass_through():
    matrix = with_spectrum(torch.linspace(-2, 1, 30).tolist())
    plain = largest_eigenvalue(lambda v: matrix @ v, vector(30), tolerance=1e-8)
    scaled = largest_eigenvalue(lambda v: 1e-6 * (matrix @ v), 1e9 * vector(30), tolerance=1e-8)
    assert scaled.value == pytest.approx(1e-6 * plain.value, rel=1e-9) and scaled.products == plain.products
    shifted = largest_eigenvalue(lambda v: matrix @ v + 3 * v, vector(30), tolerance=1e-8)
    assert shifted.value == pytest.approx(plain.value + 3, rel=1e-9)


def test_a_start_near_another_eigenvector_is_left():
    """Its residual is small; with so many products at least the largest one is found."""
    matrix = torch.diag(torch.tensor([1.0, *[0.1] * 50, 5.0], dtype=torch.float64))
    start = torch.full((52,), 1e-3, dtype=torch.float64)
    start[0] = 1.0
    early = largest_eigenvalue(lambda v: matrix @ v, start, tolerance=0.05)
    assert early.products == 1 and early.converged and early.value == pytest.approx(1, rel=0.01)
    found = largest_eigenvalue(lambda v: matrix @ v, start, tolerance=0.05, min_products=4)
    assert found.value == pytest.approx(5, rel=1e-6)
    whole = largest_eigenvalue(lambda v: 2 * v, start, min_products=4)
    assert whole.products == 1 and whole.value == pytest.approx(2), "nothing is left to search"


def test_the_start_stays_as_it_is():
    start, before = vector(5), vector(5)
    largest_eigenvalue(lambda v: v, start)
    assert torch.equal(start, before)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"start": torch.zeros(3)}, r"start of norm 0.0"),
        ({"start": torch.ones(3, 2)}, r"start of shape \(3, 2\)"),
        ({"start": torch.ones(3, dtype=torch.int64)}, "int64"),
        ({"start": torch.tensor([1.0, math.nan])}, "start of norm nan"),
        ({"tolerance": 0.0}, r"tolerance=0\.0"),
        ({"max_products": 0}, "max_products=0"),
        ({"basis": 3}, "basis=3"),
        ({"product": lambda v: v[:1]}, r"shape \(1,\) for a vector of \(3,\)"),
    ],
)
def test_refusals(changes, match):
    arguments = {"product": lambda v: v, "start": torch.ones(3), **changes}
    with pytest.raises(InputError, match=match):
        largest_eigenvalue(arguments.pop("product"), arguments.pop("start"), **arguments)


def test_a_product_that_is_not_finite():
    with pytest.raises(NonFiniteError, match="number 1 is not finite"):
        largest_eigenvalue(lambda v: v / 0, torch.ones(3))


def test_the_example_of_the_docstring():
    assert doctest.testmod(curvature).attempted > 0 == doctest.testmod(curvature).failed
