"""The jackknife is right where the answer is known, and covers at its nominal rate."""

import math

import pytest
import torch

from hf_rksp.config import SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.profile.layer import interval, profile_layer
from hf_rksp.quantities import QUANTITIES, UNESTIMABLE
from hf_rksp.spectral import SecondMoments, jackknife, smoothed_masses, standard_error


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
        low, high = interval("mean", float(x.mean()), standard_error(means), 8)
        hits += low <= math.exp(0.5) <= high
    assert 0.85 <= hits / 400 <= 0.98  # nominal .95; the log-normal's skew costs some


def test_too_few_and_non_finite():
    with pytest.raises(InputError, match="at least two"):
        standard_error([1.0])
    assert math.isnan(standard_error([1.0, math.inf, 2.0]))


def test_intervals_stay_within_what_is_possible():
    assert interval("near_unit_mass", 0.02, 0.1, 8)[0] == 0
    assert interval("near_unit_mass", 0.99, 0.1, 8)[1] == 1
    assert interval("spectral_radius", 0.99, 0.1, 8)[1] > 1


def test_interval_uses_student_t():
    low, high = interval("spectral_radius", 1.0, 0.1, 8)
    assert (high - low) / 2 == pytest.approx(2.364624 * 0.1, rel=1e-5)  # t(7) at .975


def spectral_groups(seed, d=24, n=1024, count=8):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / d**0.5
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = x + torch.tanh(x @ mixing / 2) + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64)
    groups = []
    for bx, by in zip(x.chunk(count), y.chunk(count), strict=True):
        m = SecondMoments(d)
        m.update(bx, by)
        groups.append(m)
    return groups


def profile(seed):
    return profile_layer(
        spectral_groups(seed),
        stack="s",
        index=0,
        depth=0.0,
        path="s.0",
        rank="auto",
        standard_errors=True,
        config=SpectralConfig(),
    )


def test_error_of_a_mass_is_about_its_spread_over_samples():
    """The plain jackknife of a count fails this: twice too large, or zero."""
    layers = [profile(seed) for seed in range(40)]
    for name in ("near_unit_mass", "expansive_mass"):
        spread = torch.tensor([getattr(layer, name) for layer in layers], dtype=torch.float64).std()
        errors = torch.tensor([layer.standard_errors[name] for layer in layers], dtype=torch.float64)
        assert errors.min() > 0
        assert 0.5 < float(errors.mean() / spread) < 1.8, name
        centre = sum(getattr(layer, name) for layer in layers) / len(layers)
        covered = sum(layer.intervals[name][0] <= centre <= layer.intervals[name][1] for layer in layers)
        assert covered >= 34, name


def test_replicates_keep_the_rank_of_the_whole(monkeypatch):
    from hf_rksp.profile import layer, replicates

    ranks, whole = [], layer.whitened_dmd
    for module in (layer, replicates):
        monkeypatch.setattr(
            module, "whitened_dmd", lambda *a, **k: ranks.append((result := whole(*a, **k)).rank) or result
        )
    assert profile(0).rank == 24
    assert ranks == [24] * 9


def test_all_but_two_quantities_have_an_error():
    layer = profile(0)
    assert list(layer.standard_errors) == [name for name in QUANTITIES if name not in UNESTIMABLE]
    assert layer.replicates.keys() == layer.intervals.keys() == layer.standard_errors.keys()


@pytest.mark.parametrize(("rank", "dropped"), [("full", 0), ("full", 1), (10, 0)])
def test_replicates_equal_those_with_eigenvectors(rank, dropped):
    """A replicate computes eigenvalues and traces alone; the whole spectrum, whitened by principal directions, has the same."""
    groups, config = spectral_groups(0), SpectralConfig(replicate_precision="float64")
    if dropped:  # a post-LayerNorm model: the states add up to nothing
        centre = torch.eye(24, dtype=torch.float64) - 1 / 24
        for m in groups:
            m.cxx, m.cyx, m.cyy = centre @ m.cxx @ centre, centre @ m.cyx @ centre, centre @ m.cyy @ centre
            m.mean_x, m.mean_y = centre @ m.mean_x, centre @ m.mean_y

    def whole(moments):
        covariance = moments.cxx / moments.weight
        variance, directions = torch.linalg.eigh(covariance)
        kept = slice(24 - rank, 24) if rank != "full" else slice(dropped, 24)
        w = directions[:, kept] * variance[kept].rsqrt()
        matrix, gram_y = w.T @ (moments.cyx / moments.weight) @ w, w.T @ (moments.cyy / moments.weight) @ w
        values, k = torch.linalg.eigvals(matrix), w.shape[1]
        masses = vars(smoothed_masses(values, config)[0])
        norm_y, norm_a = float(gram_y.trace()), float(matrix.square().sum())
        update = norm_y - 2 * float(matrix.trace()) + k
        return {name: value for name, value in masses.items() if name.endswith("_mass")} | {
            "spectral_radius": float(values.abs().max()),
            "nonlinearity_ratio": math.sqrt((norm_y - norm_a) / update),
            "henrici_departure": math.sqrt((norm_a - float(values.abs().square().sum())) / norm_a),
            "relative_update": math.sqrt(update / k),
        }

    layer = profile_layer(
        groups, stack="s", index=0, depth=0.0, path="s.0", rank=rank, standard_errors=True, config=config
    )
    assert layer.dropped_directions == dropped
    wanted = jackknife(groups, whole)
    assert layer.replicates.keys() == wanted.keys()
    for name, values in layer.replicates.items():
        assert values == pytest.approx(wanted[name], rel=1e-10), name
