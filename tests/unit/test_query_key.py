"""The change of the product of queries and keys: its singular values are those of the product itself."""

import pytest
import torch

from hf_rksp.spectral.query_key import change_of_product, effective_rank


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


def test_effective_rank_of_equal_values_and_of_one():
    assert float(effective_rank(torch.tensor([3.0, 3.0, 3.0]))) == pytest.approx(3)
    assert float(effective_rank(torch.tensor([5.0, 0.0]))) == pytest.approx(1)
    assert torch.isnan(effective_rank(torch.zeros(3)))
    assert effective_rank(torch.ones(2, 3)).shape == (2,)
