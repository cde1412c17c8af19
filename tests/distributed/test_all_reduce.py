"""Moments split over processes equal those of one process."""

import os

import pytest
import torch
import torch.multiprocessing as mp

from hf_rksp.spectral import SecondMoments


def states():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=g, dtype=torch.float64) + 3
    return x, torch.tanh(x) * 2


def worker(rank, world, port, sizes, out):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    assert torch.distributed.get_world_size() == world
    x, y = states()
    m = SecondMoments(6)
    m.update(x.split(sizes)[rank], y.split(sizes)[rank])
    m.all_reduce()
    torch.save(
        {k: getattr(m, k) for k in ("count", "weight", "weight_sq", "mean_x", "mean_y", "cxx", "cyx", "cyy")},
        f"{out}/{rank}.pt",
    )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # some builds abort at teardown, after the work is done


@pytest.mark.parametrize("sizes", [[45, 45], [1, 89], [0, 90], [10, 30, 50]])
def test_split_over_processes(tmp_path, sizes, free_port):
    mp.spawn(worker, args=(len(sizes), free_port, sizes, str(tmp_path)), nprocs=len(sizes))
    whole = SecondMoments(6)
    whole.update(*states())
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    for name, value in results[0].items():
        for other in results[1:]:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), f"ranks disagree on {name}"
        torch.testing.assert_close(
            torch.as_tensor(value), torch.as_tensor(getattr(whole, name)), rtol=1e-12, atol=1e-12
        )
