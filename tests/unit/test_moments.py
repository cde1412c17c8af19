"""Second moments: equal to numpy on the whole sample, whatever the batches are; bad input leaves them as they were."""

import copy

import numpy as np
import pytest
import torch

from hf_rksp.errors import InputError, NonFiniteError, TooFewTokensError
from hf_rksp.spectral import SecondMoments, merge_all


def sample(n=200, d=7, seed=0, offset=50.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) + offset
    return x, torch.tanh(x - offset) + 3 * x


def numbers(m):
    return m.count, m.weight, m.weight_sq, m.mean_x, m.mean_y, m.cxx, m.cyx, m.cyy


def assert_same(a, b, tolerance=1e-12):
    assert a.count == b.count
    for name in ("mean_x", "mean_y", "cxx", "cyx", "cyy"):
        one, other = getattr(a, name), getattr(b, name)
        assert float((one - other).norm()) <= tolerance * float(one.norm()), name


def of(x, y, **kw):
    m = SecondMoments(x.shape[-1])
    m.update(x, y, **kw)
    return m


@pytest.mark.parametrize("d", [7, 230])  # one block of columns, and three
def test_equal_to_numpy_on_the_whole_sample(d):
    x, y = sample(d=d)
    m = of(x, y)
    joint = np.cov(np.hstack([x.numpy(), y.numpy()]).T, bias=True) * len(x)
    # Relative to the largest entry: small ones are left where products cancel. Values round by 50 eps, sums of 200 by more.
    exact = {"rtol": 0, "atol": 1e-12 * np.abs(joint).max()}
    np.testing.assert_allclose(m.cxx.numpy(), joint[:d, :d], **exact)
    np.testing.assert_allclose(m.cyx.numpy(), joint[d:, :d], **exact)
    np.testing.assert_allclose(m.cyy.numpy(), joint[d:, d:], **exact)
    np.testing.assert_allclose(m.mean_x.numpy(), x.numpy().mean(0), rtol=200 * np.finfo(float).eps)
    assert m.count == 200 and m.weight == 200 and m.effective_count == 200


@pytest.mark.parametrize("sizes", [[1] * 200, [13] * 15 + [5], [199, 1], [64, 64, 64, 8]])
def test_batch_sizes_do_not_matter(sizes):
    x, y = sample()
    m = SecondMoments(7)
    for bx, by in zip(x.split(sizes), y.split(sizes), strict=True):
        m.update(bx, by)
    assert_same(of(x, y), m)


def test_batch_order_and_merge_do_not_matter():
    x, y = sample()
    parts = [of(bx, by) for bx, by in zip(x.split(30), y.split(30), strict=True)]
    before = [copy.deepcopy(numbers(p)) for p in parts]
    assert_same(merge_all(parts), merge_all(parts[::-1]))
    assert_same(of(x, y), merge_all(parts))
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(numbers(part), old, strict=True))


def test_large_offset_does_not_cancel():
    x, y = sample(offset=1e6)
    small, _ = sample(offset=0.0)
    m = SecondMoments(7)
    for bx, by in zip(x.split(10), y.split(10), strict=True):
        m.update(bx, by)
    centred = small - small.mean(0)
    # The inputs themselves carry eps * 1e6 = 2e-10; a sum of raw squares would lose 1e12 * eps = 2e-4 of the variance.
    torch.testing.assert_close(m.cxx, centred.T @ centred, rtol=1e-7, atol=1e-7)


def test_mask_and_zero_weight_leave_rows_out_even_if_nan():
    x, y = sample(n=20)
    keep = torch.arange(20) % 3 != 0
    dirty_x, dirty_y = x.clone(), y.clone()
    dirty_x[~keep], dirty_y[~keep] = torch.nan, torch.inf
    want = of(x[keep], y[keep])
    assert_same(want, of(dirty_x, dirty_y, mask=keep))
    assert_same(want, of(dirty_x.reshape(4, 5, 7), dirty_y.reshape(4, 5, 7), mask=keep.long().reshape(4, 5)))
    assert_same(want, of(dirty_x, dirty_y, weights=keep.double()))


def test_integer_weights_are_repetitions():
    x, y = sample(n=30)
    w = torch.arange(30) % 4
    weighted, repeated = of(x, y, weights=w.double()), of(x.repeat_interleave(w, 0), y.repeat_interleave(w, 0))
    for name in ("mean_x", "mean_y", "cxx", "cyx", "cyy"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name), rtol=1e-12, atol=1e-10)
    assert weighted.weight == repeated.weight
    assert weighted.effective_count == pytest.approx(float(w.sum()) ** 2 / float((w**2).sum()))


def test_without_undoes_merge():
    x, y = sample()
    part, rest = of(x[:50], y[:50]), of(x[50:], y[50:])
    assert_same(rest, merge_all([part, rest]).without(part), 1e-11)
    with pytest.raises(TooFewTokensError, match="nothing is left"):
        part.without(part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_summed_in_float64(dtype):
    x, y = (t.to(dtype) for t in sample(offset=0.0))
    assert_same(of(x.double(), y.double()), of(x, y), 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "y"])
def test_non_finite_is_refused_and_nothing_added(bad, where):
    x, y = sample(n=20)
    m = of(x, y)
    before = copy.deepcopy(numbers(m))
    dirty = {"x": x.clone(), "y": y.clone()}
    dirty[where][3, 2] = bad
    with pytest.raises(NonFiniteError, match=f"{where} holds NaN or inf in 1 of 20 rows"):
        m.update(dirty["x"], dirty["y"])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(numbers(m), before, strict=True))


def test_memory_is_independent_of_the_number_of_tokens():
    m = SecondMoments(7)
    sizes = set()
    for seed in range(3):
        m.update(*sample(seed=seed, n=100 * 10**seed))
        sizes.add(sum(v.numel() for v in vars(m).values() if torch.is_tensor(v)))
    assert sizes == {2 * 7 + 3 * 49}


@pytest.mark.parametrize(
    ("x", "y", "kw", "message"),
    [
        (torch.zeros(3, 7), torch.zeros(4, 7), {}, "same tokens"),
        (torch.zeros(3, 6), torch.zeros(3, 6), {}, "dim=7"),
        (torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7), {}, "floating"),
        (torch.zeros(3, 7), torch.zeros(3, 7), {"mask": torch.ones(4)}, "one value per row"),
        (torch.zeros(3, 7), torch.zeros(3, 7), {"weights": torch.tensor([1.0, -1, 1])}, "negative"),
        (torch.zeros(3, 7), torch.zeros(3, 7), {"weights": torch.tensor([1.0, float("nan"), 1])}, "non-finite"),
    ],
)
def test_bad_arguments_are_named(x, y, kw, message):
    with pytest.raises(InputError, match=message):
        of_seven = SecondMoments(7)
        of_seven.update(x, y, **kw)


def test_bad_dims():
    with pytest.raises(InputError, match="dim=0"):
        SecondMoments(0)
    with pytest.raises(InputError, match="dim 3 into moments of dim 2"):
        other = SecondMoments(3)
        SecondMoments(2).merge(other)
    with pytest.raises(InputError, match="parts is empty"):
        merge_all([])


def test_empty_batch_changes_nothing():
    x, y = sample(n=20)
    m = of(x, y)
    m.update(x[:0], y[:0])
    m.update(x, y, mask=torch.zeros(20))
    assert_same(of(x, y), m, 0.0)
