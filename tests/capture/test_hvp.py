"""Hessian products: closed form, double backward against central differences and against the whole Hessian."""

import math

import pytest
import torch
from torch import nn

from hf_rksp.capture import hvp
from hf_rksp.capture.hvp import gradient_of, hessian_product, inner, trainable
from hf_rksp.errors import InputError, NonFiniteError
from tests.capture.steps import Quadratic, everything, quadratic_loss, spd, texts, tiny_gpt2

METHODS = ["double_backward", "central_differences"]


def random_vector(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in trainable(model).items()}


def difference(a, b):
    """Relative, over all entries."""
    off = {name: a[name] - b[name] for name in a}
    return math.sqrt(inner(off, off) / inner(b, b))


class Once(torch.autograd.Function):
    """Square with a first derivative only, as fused attention has."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


@pytest.mark.parametrize("method", METHODS)
def test_a_quadratic_has_its_matrix(method):
    model, centre = Quadratic(spd(6)), torch.arange(6, dtype=torch.float64)
    vector = random_vector(model)
    result = hessian_product(model, lambda: quadratic_loss(model, centre), vector, method)
    flat = torch.cat([vector["first"], vector["rest"]])
    assert result.method == method
    assert torch.cat([result.product["first"], result.product["rest"]]).tolist() == pytest.approx(
        (model.matrix @ flat).tolist(), rel=1e-8
    )
    assert torch.cat([*result.gradient.values()]).tolist() == pytest.approx((-model.matrix @ centre).tolist())
    assert result.loss == pytest.approx(float(centre @ model.matrix @ centre / 2))


def test_double_backward_agrees_with_the_whole_hessian():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), torch.randn(5, 3).double()
    weights, vector = dict(model.named_parameters()), random_vector(model)
    loss = lambda w: torch.func.functional_call(model, w, (x,)).square().mean()  # noqa: E731
    whole = torch.func.hessian(loss)({n: w.detach() for n, w in weights.items()})
    expected = {n: sum(torch.tensordot(whole[n][m], vector[m], vector[m].ndim) for m in weights) for n in weights}
    result = hessian_product(model, lambda: model(x).square().mean(), vector)
    assert difference(result.product, expected) < 1e-12


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["sign", "random"])
def test_both_methods_agree_on_a_transformer(attention, kind):
    model, (batch,) = tiny_gpt2(attention), texts(1)
    loss = lambda: model(**batch).loss  # noqa: E731
    vector = random_vector(model)
    if kind == "sign":
        vector = {name: g.sign() for name, g in gradient_of(model, loss)[1].items()}
    exact, differences = (hessian_product(model, loss, vector, method) for method in METHODS)
    assert difference(differences.product, exact.product) < 5e-3
    assert difference(differences.gradient, exact.gradient) < 1e-5
    assert (exact.forwards, exact.backwards, differences.forwards, differences.backwards) == (1, 2, 3, 3)


def test_fused_attention_has_no_second_derivative_by_itself(monkeypatch):
    """So the product takes another form of it, and without that form it falls back."""
    model, (batch,) = tiny_gpt2("sdpa"), texts(1)
    assert hessian_product(model, lambda: model(**batch).loss, random_vector(model)).method == "double_backward"
    monkeypatch.setattr(hvp, "_twice_differentiable", lambda: torch.enable_grad())
    result = hessian_product(model, lambda: model(**batch).loss, random_vector(model))
    assert result.method == "central_differences" and (result.forwards, result.backwards) == (3, 4)


def test_a_function_with_one_derivative_falls_back():
    model = nn.Linear(3, 1).double()
    x = torch.arange(6, dtype=torch.float64).view(2, 3)
    loss = lambda square: lambda: square(model(x)).sum()  # noqa: E731
    vector = random_vector(model)
    result = hessian_product(model, loss(Once.apply), vector)
    exact = hessian_product(model, loss(torch.square), vector, "double_backward")
    assert result.method == "central_differences" and difference(result.product, exact.product) < 1e-7
    assert (result.forwards, result.backwards) == (4, 3)
    # torch says nothing: a product without this part, so that "auto" has to look at the graph.
    wrong = hessian_product(model, loss(Once.apply), vector, "double_backward")
    assert not wrong.product


def test_another_error_does_not_fall_back():
    model, calls = nn.Linear(1, 1), []

    def broken():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the loss is broken")
        return model(torch.ones(1)).sum()

    with pytest.raises(RuntimeError, match="the loss is broken"):
        hessian_product(model, broken, {})


def test_a_parameter_that_one_side_alone_reaches():
    model = nn.ParameterDict({name: nn.Parameter(torch.zeros(1).double()) for name in ("switch", "below", "above")})
    vector = {"switch": torch.ones(1).double()}

    def loss():
        at = model["switch"]
        return (at.square() + (model["below"] if at < 0 else model["above"] if at > 0 else 0)).sum()

    result = hessian_product(model, loss, vector, "central_differences")
    assert (
        float(result.product["above"]) == pytest.approx(-float(result.product["below"])) and result.product["above"] > 0
    )
    assert float(result.product["switch"]) == pytest.approx(2)


def test_frozen_weights_are_left_out():
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    model.bias.requires_grad_(False)
    result = hessian_product(model, lambda: model(x).square().sum(), random_vector(model))
    assert set(result.product) == set(result.gradient) == {"weight"}
    with pytest.raises(InputError, match=r"vector\['bias'\]"):
        hessian_product(model, lambda: model(x).square().sum(), {"bias": torch.ones(2)})


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_loss_has_no_curvature(method):
    model = nn.Linear(3, 1).double()
    result = hessian_product(model, lambda: model(torch.ones(3).double()).sum(), random_vector(model), method)
    assert inner(result.product, result.product) == pytest.approx(0, abs=1e-18)
    assert result.gradient["weight"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_the_same_in_every_pass(method):
    model, (batch,) = tiny_gpt2("eager", dropout=0.3).double().train(), texts(1)
    vector = random_vector(model)
    first, second = (hessian_product(model, lambda: model(**batch).loss, vector, method) for _ in range(2))
    assert first.loss == second.loss and difference(first.product, second.product) == 0
    exact = hessian_product(model, lambda: model(**batch).loss, vector)
    assert difference(first.product, exact.product) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_untouched(method):
    model, (batch,) = tiny_gpt2(dropout=0.1).train(), texts(1)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = everything(model)
    hessian_product(model, lambda: model(**batch).loss, random_vector(model), method)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda m: m(torch.ones(2)), InputError, r"it returned \(3,\)"),
        (lambda m: 1.0, InputError, "it returned float"),
        (lambda m: m(torch.ones(2)).sum().detach(), InputError, "no trainable parameter"),
        (lambda m: m(torch.ones(2)).sum() * math.inf, NonFiniteError, r"loss=(-?inf|nan)"),
        (lambda m: (m.weight * 0).abs().sqrt().sum(), NonFiniteError, "the gradient at 'weight' is not finite"),
    ],
)
def test_refusals(loss, error, match):
    model = nn.Linear(2, 3)
    with pytest.raises(error, match=match):
        gradient_of(model, lambda: loss(model))
    with pytest.raises(error, match=match):
        hessian_product(model, lambda: loss(model), {})


def test_an_unknown_method():
    with pytest.raises(InputError, match="method='exact'"):
        hessian_product(nn.Linear(1, 1), lambda: None, {}, "exact")
