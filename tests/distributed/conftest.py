"""Each kind of training is started once a session, with all of its cases one after the other."""

import pytest

from tests.distributed.launch import train
from tests.distributed.workers.cases import CASES

DDP = ["balanced", "paper", "balanced accumulated", "paper accumulated", "balanced mean", "paper mean", "paper resumed"]
SHARP = ["sharp balanced", "sharp paper", "sharp off accumulated", "sharp balanced exact", "sharp paper exact"]
FSDP2 = ["balanced", "paper", "paper accumulated", "paper resumed"]
ZERO = ["1:balanced", "1:paper", "2:balanced", "2:paper", "2:balanced accumulated"]
ZERO += ["3:balanced", "3:paper", "3:paper accumulated", "3:balanced exact", "3:paper resumed"]


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """One process: case -> what it saw."""
    return train("one", 1, tmp_path_factory.mktemp("one"), [name for name in CASES if name != "paper resumed"])[0]


@pytest.fixture(scope="session")
def ddp(tmp_path_factory):
    """Two processes: for each rank, case -> what it saw."""
    return train("ddp", 2, tmp_path_factory.mktemp("ddp"), DDP + SHARP)


@pytest.fixture(scope="session")
def fsdp2(tmp_path_factory):
    return train("fsdp2", 2, tmp_path_factory.mktemp("fsdp2"), FSDP2 + SHARP)


@pytest.fixture(scope="session")
def zero(tmp_path_factory):
    # DeepSpeed compiles its communication at first use, which takes a minute or two.
    return train("zero", 2, tmp_path_factory.mktemp("zero"), ZERO, timeout=600)
