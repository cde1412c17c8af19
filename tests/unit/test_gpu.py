"""On a CUDA device: states and moments stay there, the solution is in main memory, the numbers are the CPU's."""

import pytest
import torch

from hf_rksp import profile_model
from hf_rksp.spectral import SecondMoments
from hf_rksp.spectral.query_key import change_gram, effective_rank_of_grams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_profile_on_cuda_equals_cpu():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=32)).double()
    ids = torch.randint(0, 64, (16, 32))
    on_cpu = profile_model(model, [ids], progress=False)
    state = torch.cuda.get_rng_state()
    on_gpu = profile_model(model.cuda(), [ids], progress=False)
    assert torch.equal(state, torch.cuda.get_rng_state())
    for a, b in zip(on_cpu.layers, on_gpu.layers, strict=True):
        assert a.spectral_radius == pytest.approx(b.spectral_radius, rel=1e-8)
        assert a.near_unit_mass == b.near_unit_mass


def test_moments_accumulate_on_the_device():
    x = torch.randn(50, 4, device="cuda")
    m = SecondMoments(4, "cuda")
    m.update(x, 2 * x)
    assert m.cxx.is_cuda and not m.cpu().cxx.is_cuda
    torch.testing.assert_close(m.cpu().cyx, 2 * m.cpu().cxx)


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_effective_rank_on_the_device_is_that_of_eigenvalues(rank):
    """It is another algorithm there."""
    dice = torch.Generator().manual_seed(0)
    q, k = (torch.randn(4, 64, 256, generator=dice) for _ in range(2))
    dq, dk = (1e-4 * torch.randn(4, 64, rank, generator=dice) @ torch.randn(4, rank, 256, generator=dice) for _ in "qk")
    dq[3] = dk[3] = 0.0
    exact = effective_rank_of_grams(change_gram(q.double(), k.double(), dq.double(), dk.double()))
    on_device = [one.cuda() for one in (q, k, dq, dk)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = effective_rank_of_grams(change_gram(*on_device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), exact, rtol=1e-4, atol=0, equal_nan=True)
