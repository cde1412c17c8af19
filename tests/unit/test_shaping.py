"""KSS: the operator is the whitened DMD's, the penalty is Eq. 14, and gradients agree with finite differences."""

import math

import numpy as np
import pytest
import torch

from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError
from hf_rksp.spectral import SecondMoments, modal_basis, whitened_dmd
from hf_rksp.spectral.penalties import excess_penalty, shaping_operator, shaping_penalty, solve_penalties
from hf_rksp.spectral.shaping import leading_directions, project, projected_sums, state_gradients


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(n=200, d=8):
    x = randn(n, d) * torch.logspace(0, -1, d, dtype=torch.float64) + 0.5
    return x, x + 0.5 * torch.tanh(x @ randn(d, d, seed=1)) + 0.1


def test_operator_has_the_eigenvalues_of_the_whitened_dmd():
    x, y = states()
    m = SecondMoments(8)
    m.update(x, y)
    directions = torch.linalg.eigh(m.cxx).eigenvectors.flip(1)[:, :4]
    sums = projected_sums(project(x, directions), project(y, directions))
    ours = shaping_operator(sums, KSSConfig(rank=4, ridge=1e-14, centred=True))
    want = modal_basis(whitened_dmd(m, 4).matrix).eigenvalues
    torch.testing.assert_close(
        torch.linalg.eigvals(ours).abs().sort().values, want.abs().sort().values, rtol=1e-8, atol=1e-10
    )


def test_sums_of_parts_add_up():
    x, y = states()
    directions = leading_directions([x], 4, torch.Generator().manual_seed(0))[0]
    p, q = project(x, directions), project(y, directions)
    whole = projected_sums(p, q)
    parts = sum(projected_sums(a, b) for a, b in zip(p.split(33), q.split(33), strict=True))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_directions_are_orthonormal_reproducible_and_leading():
    x, _ = states()
    one, other = (leading_directions([x], 4, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one.T @ one, torch.eye(4, dtype=torch.float64))
    centred = x - x.mean(0)
    best = torch.linalg.svdvals(centred)[:4].square().sum()
    assert float((centred @ one).square().sum() / best) > 0.95
    # Not centred, the mean is among them.
    shifted = leading_directions([x + 100], 1, torch.Generator().manual_seed(3), centred=False)[0]
    assert abs(float(shifted.T @ torch.ones(8, 1, dtype=torch.float64)) / math.sqrt(8)) == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="rank=9"):
        leading_directions([x], 9, torch.Generator())


def test_growth_of_the_mean_is_seen_only_without_centring():
    x = randn(500, 8) + 3
    y = x - x.mean(0) + 5 * x.mean(0)
    radius = {}
    for centred in (True, False):
        directions = leading_directions([x], 8, torch.Generator().manual_seed(0), centred)[0]
        sums = projected_sums(project(x, directions), project(y, directions))
        operator = shaping_operator(sums, KSSConfig(rank=8, ridge=1e-6, centred=centred))
        radius[centred] = float(torch.linalg.eigvals(operator).abs().max())
    assert radius[True] == pytest.approx(1, abs=1e-3)
    assert radius[False] > 4


def test_penalty_is_equation_14():
    config = KSSConfig("paper")
    moduli = torch.tensor([0.5, 0.97, 1.0, 1.2], dtype=torch.float64)

    def sigmoid(t):
        return 1 / (1 + math.exp(-t))

    unstable = sum(sigmoid(20 * (a - 1.05)) * math.log1p(math.exp(a - 1.05)) ** 2 for a in moduli.tolist())
    soft = sum(sigmoid(20 * (a - 0.9)) * sigmoid(20 * (1.05 - a)) for a in moduli.tolist()) / 4
    want = unstable + 1.0 * (soft - 0.4) ** 2
    assert float(shaping_penalty(moduli, config)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("schedule", ["paper", "balanced"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["real", "pairs", "near-defective"])
def test_gradient_equals_finite_differences(kind, centred, schedule):
    angle = 0.7
    matrix = {
        "real": torch.diag(torch.tensor([1.3, 1.1, 0.95, 0.6], dtype=torch.float64)) + 0.05 * randn(4, 4, seed=2),
        "pairs": 1.1
        * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        .double()
        .kron(torch.tensor([[1.0, 0.2], [0.0, 0.8]], dtype=torch.float64)),
        "near-defective": torch.tensor([[1.1, 1, 0, 0], [1e-3, 1.1, 0, 0], [0, 0, 0.9, 1], [0, 0, 1e-3, 0.9]]).double(),
    }[kind]
    config = KSSConfig(schedule=schedule, rank=4, ridge=1e-3, centred=centred)
    loss = shaping_penalty if schedule == "paper" else excess_penalty
    x = randn(60, 4) + 0.2
    y = x @ matrix.T
    eigenvalues = torch.linalg.eigvals(shaping_operator(projected_sums(x, y), config))
    assert (eigenvalues.imag.abs().max() > 0.1) == (kind == "pairs")

    def penalty(x, y):
        return loss(torch.linalg.eigvals(shaping_operator(projected_sums(x, y), config)).abs(), config)

    assert torch.autograd.gradcheck(
        penalty, (x.requires_grad_(), y.detach().requires_grad_()), eps=1e-7, atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"ridge": 0},
        {"temperature": -1, "schedule": "paper"},
        {"near_unit_target": 2, "schedule": "paper"},
        {"near_unit_weight": -1, "schedule": "paper"},
        {"lower_threshold": 0.9},
        {"lower_threshold": 1.1, "schedule": "paper"},
        {"layer_fraction": "0.5"},
        {"weight": -1},
        {"every": 0},
        {"schedule": "none"},
    ],
)
def test_config_is_checked(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        KSSConfig(**bad)


@pytest.mark.parametrize("schedule", ["paper", "balanced"])
@pytest.mark.parametrize("centred", [True, False])
def test_gradient_at_the_sums_is_autograds(schedule, centred):
    """The closed form at the operator against torch's own derivative of its eigenvalues."""
    x, y = states()
    config = KSSConfig(schedule=schedule, rank=8, upper_threshold=1.0, centred=centred)
    loss = shaping_penalty if schedule == "paper" else excess_penalty
    sums = torch.stack([projected_sums(x, y), projected_sums(x, 0.1 * y), projected_sums(y, x)]).requires_grad_()
    values = loss(torch.linalg.eigvals(shaping_operator(sums, config)).abs(), config)
    (want,) = torch.autograd.grad(values.sum(), sums)
    solved = solve_penalties(sums.detach(), config)
    torch.testing.assert_close(torch.from_numpy(solved.penalties), values.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solved.gradients, want, rtol=1e-8, atol=1e-10 * float(want.abs().max()))
    assert want[0].any() and (want[1].any() == (schedule == "paper"))


def test_a_layer_at_which_lapack_fails_does_not_cost_the_others(monkeypatch):
    x, y = states()
    sums, config = torch.stack([projected_sums(x, y), projected_sums(y, x)]), KSSConfig(rank=8, upper_threshold=0.5)
    want, eigvals = solve_penalties(sums, config), np.linalg.eigvals
    bad = shaping_operator(sums, config)[0].numpy()

    def fails(matrices):
        if (np.atleast_3d(matrices.T).T == bad).all((1, 2)).any():
            raise np.linalg.LinAlgError
        return eigvals(matrices)

    monkeypatch.setattr(np.linalg, "eigvals", fails)
    found = solve_penalties(sums, config)
    assert found.good.tolist() == [False, True] and not found.gradients[0].any()
    assert torch.equal(found.gradients[1], want.gradients[1]) and found.penalties[1] == want.penalties[1]


def test_chain_rule_from_the_sums_to_the_states_is_autograds():
    x, y = states()
    p, q = (h[:, :4].clone().requires_grad_() for h in (x, y))
    weights = (torch.arange(len(p)) % 5 > 0).double()[:, None]
    sums = projected_sums(p * weights, q * weights, weights)
    config = KSSConfig(rank=4)
    (at_sums,) = torch.autograd.grad(
        excess_penalty(torch.linalg.eigvals(shaping_operator(sums, config)).abs(), config), sums, retain_graph=True
    )
    want = torch.autograd.grad(sums, (p, q), at_sums)
    got = state_gradients((p * weights).detach(), (q * weights).detach(), at_sums, weights)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert float(got[0].abs().max()) > 0


def test_padding_does_not_enter_the_sums():
    x, y = states()
    weights = (torch.arange(len(x)) % 3 > 0).double()[:, None]
    kept = weights[:, 0] > 0
    for centred in (True, False):
        garbage = torch.where(kept[:, None], x, 1e6)
        padded = leading_directions([garbage], 4, torch.Generator().manual_seed(0), centred, weights)
        alone = leading_directions([x[kept]], 4, torch.Generator().manual_seed(0), centred)
        torch.testing.assert_close(padded, alone, rtol=1e-6, atol=1e-6)
    basis = alone[0]
    ours = projected_sums(project(garbage, basis, weights), project(y, basis, weights), weights)
    torch.testing.assert_close(ours, projected_sums(project(x[kept], basis), project(y[kept], basis)))


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_layers_that_cannot_be_solved_are_left_out_and_counted(schedule):
    x, y = states()
    config = KSSConfig(schedule=schedule, rank=8)
    good = projected_sums(x, 2 * y)
    broken = [good.clone() for _ in range(4)]
    broken[0][-2], broken[1][-1], broken[2][0] = math.nan, math.inf, 15.0  # two tokens a direction are 16
    broken[3] *= 0
    solved = solve_penalties(torch.stack([good, *broken]), config)
    assert solved.good.tolist() == [True, False, False, False, False]
    assert float(solved.penalties[0]) > 0 and not solved.penalties[1:].any() and not solved.gradients[1:].any()
    assert np.isnan(solved.eigenvalues[1:]).all() and not np.isnan(solved.eigenvalues[0]).any()
