"""Start the scripts in workers/ and read what each rank saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

WORKERS = Path(__file__).parent / "workers"
#: A free port of this machine, which torchrun chooses; ranks are named in what they print.
TORCHRUN = (
    "torch.distributed.run --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:0 --local_addr 127.0.0.1 --tee 3".split()
)


def start(command: list[str], timeout: float) -> None:
    """Run ``python command``; what it printed goes into the error if it fails or takes too long."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    # The project as it lies here; one thread a process; ninja of this environment, with which DeepSpeed builds.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(WORKERS.parents[2])]))
    environment["OMP_NUM_THREADS"] = "1"
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
        ended = f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks too
        printed, _ = process.communicate()
        ended = f"did not end within {timeout} s"
    if process.returncode:
        raise AssertionError(f"{' '.join(command)} {ended}. The end of what it printed:\n{printed[-8000:]}")


def train(mode: str, processes: int, folder: Path, cases: list[str], timeout: float = 500) -> list[dict[str, Any]]:
    """Run the cases one after the other; for each rank, what `workers/train.py` saved of each case."""
    script = [str(WORKERS / "train.py"), mode, str(processes), str(folder), *cases]
    start(script if processes == 1 else ["-m", *TORCHRUN, "--nproc_per_node", str(processes), *script], timeout)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
