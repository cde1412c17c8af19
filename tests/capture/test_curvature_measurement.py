"""The largest eigenvalue of the preconditioned Hessian, against the whole matrix and against ARPACK."""

import dataclasses
import json

import numpy
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from hf_rksp.capture.hvp import gradient_of, trainable
from hf_rksp.errors import InputError
from hf_rksp.profile import measure_curvature
from tests.capture.steps import Quadratic, centres, everything, quadratic_loss, spd, texts, tiny_gpt2

SETTINGS = {"tolerance": 1e-6, "max_products": 300}


def test_a_quadratic_to_a_millionth():
    model, batches = Quadratic(spd(7)), centres(4, 7)
    result = measure_curvature(model, quadratic_loss, batches, eps=0.5, floors=(0.0,), **SETTINGS)
    g = torch.stack([model.matrix @ c for c in batches])
    scale = (g.square().mean(0).sqrt() + 0.5).rsqrt()
    expected = float(torch.linalg.eigvalsh(scale[:, None] * model.matrix * scale)[-1])
    (at,) = result.at_floors
    assert at.lambda_max_after_warmup == pytest.approx(expected, rel=1e-6) and at.converged
    assert at.share_left_out == 0 and at.products <= 7


def test_small_second_moments_are_left_out():
    model, g = Quadratic(spd(6)), torch.tensor([1, 1e-3, 1e-3, 3, 0, 0]).double()
    centre = torch.linalg.solve(model.matrix, g)  # rounding: 0 is not quite 0
    floors = (0.0, 1e-3, 20.0, 1e6)
    result = measure_curvature(model, quadratic_loss, [centre, centre], eps=1e-4, floors=floors, **SETTINGS)
    assert [at.share_left_out for at in result.at_floors] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    scale = (g + 1e-4).rsqrt()
    whole = scale[:, None] * model.matrix * scale
    for at, kept in zip(result.at_floors, ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [0, 3]), strict=False):
        part = whole[kept][:, kept]
        assert at.lambda_max_after_warmup == pytest.approx(float(torch.linalg.eigvalsh(part)[-1]), rel=1e-6)
    assert result.at_floors[-1].lambda_max_after_warmup is None and not result.at_floors[-1].converged


def test_a_negative_eigenvalue_of_larger_modulus_is_not_taken():
    matrix = torch.diag(torch.tensor([-50.0, -1.0, 2.0], dtype=torch.float64))
    centre = torch.ones(3, dtype=torch.float64)
    (at,) = measure_curvature(Quadratic(matrix), quadratic_loss, [centre] * 2, floors=(0.0,), **SETTINGS).at_floors
    assert at.lambda_max_after_warmup == pytest.approx(1, rel=1e-6)


def test_agrees_with_arpack_on_a_transformer():
    """The oracle has its own products: central differences of float64 gradients."""
    model, batches = tiny_gpt2("eager"), texts(3)
    before = everything(model)
    result = measure_curvature(
        model, None, batches, eps=1e-3, hessian_batches=2, floors=(0.1,), tolerance=1e-4, max_products=200
    )
    assert everything(model) == before
    (at,) = result.at_floors

    twin = tiny_gpt2("eager").double()
    weights = trainable(twin)

    def loss(batch):
        logits = twin(input_ids=batch["input_ids"]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    def gradient(batch):
        named = gradient_of(twin, lambda: loss(batch))[1]
        return torch.cat([named[name].flatten() for name in weights])

    root = torch.stack([gradient(b).square() for b in batches]).mean(0).sqrt()
    scale = torch.where(root >= 1e-4, (root + 1e-3).rsqrt(), 0.0)
    start = torch.nn.utils.parameters_to_vector(weights.values()).detach()

    def product(v):
        along, sides = scale * torch.from_numpy(v).flatten(), []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(start + sign * 1e-6 * along, weights.values())
            sides.append(sum(gradient(b) for b in batches[:2]) / 2)
        return (scale * (sides[0] - sides[1]) / 2e-6).numpy()

    operator = LinearOperator((len(scale), len(scale)), matvec=product, dtype=numpy.float64)
    expected = eigsh(operator, k=1, which="LA", tol=1e-4, return_eigenvectors=False)[0]
    assert at.converged and 0 < at.share_left_out < 1
    assert at.lambda_max_after_warmup == pytest.approx(expected, rel=1e-3)


def test_untouched_and_plain_numbers():
    model, batches = tiny_gpt2(dropout=0.1).train(), texts(2)
    before = everything(model)
    result = measure_curvature(model, None, batches, max_products=3, training=True)
    assert everything(model) == before
    assert [at.floor for at in result.at_floors] == [10.0, 100.0] and not result.at_floors[0].converged
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_refusals():
    with pytest.raises(InputError, match="hessian_batches=3: pass a whole number from 1 to 2"):
        measure_curvature(tiny_gpt2(), None, texts(2), hessian_batches=3)
    with pytest.raises(InputError, match="pass at least two"):
        measure_curvature(tiny_gpt2(), None, texts(1))
