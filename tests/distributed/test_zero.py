"""KSS on two processes under DeepSpeed: optimizer, gradients and weights spread over the processes (ZeRO 1, 2, 3)."""

import pytest

from tests.distributed.compare import assert_same_run
from tests.distributed.conftest import ZERO

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("name", ZERO)
def test_two_processes_are_one(zero, one, name):
    stage, case = name.split(":")
    reference = one["paper" if case == "paper resumed" else case]
    assert_same_run([rank[name] for rank in zero], reference, f"zero{stage}")
