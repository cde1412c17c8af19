"""Each kind of training is started once a session, with all of its cases one after the other."""

import pytest

from tests.distributed.launch import train
from tests.distributed.workers.cases import CASES

DDP = ["balanced", "paper", "balanced accumulated", "paper accumulated", "balanced mean", "paper mean", "paper resumed"]
DDP += ["off accumulated", "balanced exact", "paper exact", "float32 balanced", "float32 paper", "curvature", "depth"]
FSDP2 = ["balanced", "paper", "paper accumulated", "paper resumed", "off accumulated", "balanced exact", "paper exact"]
FSDP2 += ["float32 balanced", "float32 paper", "curvature", "depth", "depth resumed", "depth ramp"]
#: DeepSpeed keeps its weights and gradients in float32, so a model in float64 is one of them for the first step alone.
ONCE = [f"{stage}:{name}" for stage in (1, 2, 3) for name in ("balanced once", "paper once")]
ZERO = ["1:balanced", "1:paper", "2:balanced", "2:paper", "2:balanced accumulated"]
ZERO += ["1:depth", "2:depth", "3:depth", "2:depth resumed", "3:depth resumed", "1:depth ramp", "2:depth ramp"]
ZERO += ["3:balanced", "3:paper", "3:paper accumulated", "3:balanced exact", "3:paper resumed"]
ZERO = [name.replace(":", ":float32 ") for name in ZERO]
#: With Adam, which blows up the rounding of weights: readings alone are compared. They come first, because ZeRO-3 puts a linear map
#: without a second derivative into torch.
CURVATURE = [f"{stage}:float32 curvature" for stage in (1, 2, 3)]

#: One process has NaN in a step: not compared log by log.
GUARD = ["guard skip", "guard back"]
ZERO_GUARD = [f"{stage}:float32 {name}" for stage in (1, 2, 3) for name in GUARD]


def reference(name: str) -> str:
    """The case of one process that ``name`` is compared with: a resumed run is that which was never stopped."""
    return name.split(":")[-1].removesuffix(" resumed")


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """One process: case -> what it saw."""
    return train("one", 1, tmp_path_factory.mktemp("one"), [name for name in CASES if "resumed" not in name])[0]


@pytest.fixture(scope="session")
def ddp(tmp_path_factory):
    """Two processes: for each rank, case -> what it saw."""
    return train("ddp", 2, tmp_path_factory.mktemp("ddp"), DDP + GUARD)


@pytest.fixture(scope="session")
def fsdp2(tmp_path_factory):
    return train("fsdp2", 2, tmp_path_factory.mktemp("fsdp2"), FSDP2 + GUARD)


@pytest.fixture(scope="session")
def zero(tmp_path_factory):
    # DeepSpeed compiles its communication at first use, which takes a minute or two.
    return train("zero", 2, tmp_path_factory.mktemp("zero"), CURVATURE + ONCE + ZERO + ZERO_GUARD, timeout=600)
