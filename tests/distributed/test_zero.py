"""KSS on two processes under DeepSpeed: optimizer, gradients and weights spread over the processes (ZeRO 1, 2, 3)."""

import pytest

from tests.distributed.compare import EPS, SHARP_LOGS, assert_same_logs, assert_same_run, assert_same_weights
from tests.distributed.conftest import ONCE, ZERO, reference

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("name", ZERO)
def test_two_processes_are_one(zero, one, name):
    assert_same_run([rank[name] for rank in zero], one[reference(name)], f"zero{name[0]}", sharp=False)


@pytest.mark.parametrize("name", ONCE)
def test_the_first_step_in_float64(zero, one, name):
    """The same forward and backward pass; the gradient and the step are DeepSpeed's own, in float32: one rounding each."""
    for rank in zero:
        assert rank[name]["kind"] == f"zero{name[0]}" and rank[name]["drawn"] == one[reference(name)]["drawn"]
        assert_same_logs(one[reference(name)], rank[name], SHARP_LOGS | {"grad_norm": 4 * EPS})
        assert_same_weights(one[reference(name)], rank[name], (EPS, EPS))
