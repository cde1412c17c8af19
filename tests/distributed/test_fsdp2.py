"""KSS on two processes under FSDP2, where every block's weights are spread over the processes."""

import pytest

from tests.distributed.compare import assert_same_run
from tests.distributed.conftest import FSDP2, reference
from tests.distributed.workers.cases import CASES

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("name", FSDP2)
def test_two_processes_are_one(fsdp2, one, name):
    assert_same_run([rank[name] for rank in fsdp2], one[reference(name)], "fsdp2", sharp=CASES[name].double)
