"""The commands that users start two processes with; some that look alike start one without a word."""

import json

import pytest

from tests.distributed.launch import TORCHRUN, WORKERS, start

LAUNCHERS = {
    "torchrun": [*TORCHRUN, "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


@pytest.mark.parametrize(("launcher", "risk"), [("torchrun", "warn"), ("accelerate", "off")])
def test_two_processes_start(tmp_path, free_port, launcher, risk):
    """The weights of the second differ until DDP sends those of the first: what is decided before is decided by the first."""
    port = ["--main_process_port", str(free_port)] if launcher == "accelerate" else []
    start(["-m", *LAUNCHERS[launcher], *port, str(WORKERS / "hello.py"), str(tmp_path), risk], timeout=200)
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["wrapped"] for rank in ranks] == ["DistributedDataParallel"] * 2
    # Of the main process, on all.
    assert ranks[0]["forecast"] == ranks[1]["forecast"]
    assert risk == "off" or "P(lost) at learning rate 5e-05" in ranks[0]["forecast"]
    assert ranks[0]["choice"] == ranks[1]["choice"] and "random weights" in ranks[0]["choice"]
    assert ranks[0]["weights"] == ranks[1]["weights"], "the processes train apart"
