"""The change of the product of queries and keys: its singular values are those of the product itself."""

import pytest
import torch

from hf_rksp.spectral import query_key
from hf_rksp.spectral.query_key import change_gram, change_of_product, effective_rank, singular_values


@pytest.mark.parametrize(("heads", "size", "d"), [(3, 4, 20), (2, 8, 10), (1, 1, 5)])
def test_singular_values_are_those_of_the_whole_matrix(heads, size, d):
    dice = torch.Generator().manual_seed(0)
    q, k, dq, dk = (torch.randn(heads, size, d, dtype=torch.float64, generator=dice) for _ in range(4))
    found = change_of_product(q, k, dq, dk)
    whole = torch.linalg.svdvals(dq.mT @ k + q.mT @ dk)
    torch.testing.assert_close(found, whole[:, : found.shape[1]])
    assert float(whole[:, found.shape[1] :].sum()) < 1e-10


def test_first_order_is_the_change_itself_for_small_steps():
    dice = torch.Generator().manual_seed(1)
    q, k, dq, dk = (torch.randn(1, 4, 12, dtype=torch.float64, generator=dice) for _ in range(4))
    truth = torch.linalg.svdvals((q + 1e-6 * dq).mT @ (k + 1e-6 * dk) - q.mT @ k)[:, :8]
    torch.testing.assert_close(change_of_product(q, k, 1e-6 * dq, 1e-6 * dk), truth, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("part", [(1e-4, 1e-4), (1e-4, 0.0), (0.0, 1e-4), (1e-2, 1e-6), (1e-7, 1e-3)])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_float32_is_enough_for_small_changes_and_low_rank(part, rank):
    dice = torch.Generator().manual_seed(2)
    q, k = (torch.randn(3, 32, 100, generator=dice) for _ in range(2))
    dq, dk = (
        size * torch.randn(3, 32, rank, generator=dice) @ torch.randn(3, rank, 100, generator=dice) for size in part
    )
    exact = torch.linalg.svdvals(dq.double().mT @ k.double() + q.double().mT @ dk.double())
    found = effective_rank(change_of_product(q, k, dq, dk))
    torch.testing.assert_close(found.double(), effective_rank(exact), rtol=5e-3, atol=0)


def test_weights_that_did_not_move_have_no_rank_and_broken_ones_touch_no_other():
    dice = torch.Generator().manual_seed(3)
    q, k, dq, dk = (torch.randn(3, 4, 12, generator=dice) for _ in range(4))
    dq[0] = dk[0] = 0.0
    k[1, 0, 0] = torch.nan
    found = change_of_product(q, k, dq, dk)
    assert found[0].tolist() == [0.0] * 8 and found[1].isnan().all()
    torch.testing.assert_close(found[2:], change_of_product(q[2:], k[2:], dq[2:], dk[2:]))
    assert effective_rank(found).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("zero", [(0,), (1,), (0, 1), (0, 3), (1, 2)])
def test_weights_and_changes_of_zero(zero):
    """Queries may begin at zero, and a block that was locked does."""
    dice = torch.Generator().manual_seed(4)
    parts = [torch.randn(2, 4, 20, dtype=torch.float64, generator=dice) for _ in range(4)]
    for place in zero:
        parts[place].zero_()
    q, k, dq, dk = parts
    whole = torch.linalg.svdvals(dq.mT @ k + q.mT @ dk)[:, :8]
    found = change_of_product(q, k, dq, dk)
    torch.testing.assert_close(found.square(), whole.square(), rtol=1e-9, atol=1e-9)


def test_effective_rank_of_equal_values_and_of_one():
    assert float(effective_rank(torch.tensor([3.0, 3.0, 3.0]))) == pytest.approx(3)
    assert float(effective_rank(torch.tensor([5.0, 0.0]))) == pytest.approx(1)
    assert torch.isnan(effective_rank(torch.zeros(3)))
    assert effective_rank(torch.ones(2, 3)).shape == (2,)


@pytest.mark.parametrize("size", [1, 2, 8, 64, 200])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 5.0])
def test_entropy_by_resolvents_is_that_of_the_eigenvalues(size, decay):
    dice = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(size, size, generator=dice, dtype=torch.float64))[0]
    for rank in {1, (size + 1) // 2, size}:
        values = torch.exp(-decay * torch.arange(size, dtype=torch.float64)) * (torch.arange(size) < rank)
        gram = 1e-9 * (turn * values) @ turn.mT
        exact = effective_rank(values.sqrt())
        torch.testing.assert_close(query_key._by_resolvents(gram[None])[0], exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rank", [1, 3, 64])
def test_resolvents_of_small_changes_and_low_rank(rank):
    dice = torch.Generator().manual_seed(6)
    q, k = (torch.randn(3, 32, 100, generator=dice).double() for _ in range(2))
    dq, dk = (
        1e-4 * torch.randn(3, 32, rank, generator=dice).double() @ torch.randn(3, rank, 100, generator=dice).double()
        for _ in range(2)
    )
    dq[2] = dk[2] = 0.0
    k[1, 0, 0] = torch.nan
    grams = change_gram(q, k, dq, dk)
    torch.testing.assert_close(
        query_key._by_resolvents(grams), effective_rank(singular_values(grams)), rtol=1e-5, atol=0, equal_nan=True
    )
