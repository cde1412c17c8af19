"""A depth warm-up on two processes is that of one: locked, unlocked with the same weights, and resumed before it unlocks."""

import pytest
import torch

from tests.distributed.compare import WEIGHTS, assert_same_logs, assert_same_weights

pytestmark = pytest.mark.timeout(1200)


def assert_unlocked(run, step):
    active = [row["depth_warmup/active"] for row in run["logs"]]
    assert active == [2.0] * step + [3.0] * (len(active) - step)


@pytest.mark.parametrize(
    ("kind", "name"), [("ddp", "depth"), ("fsdp2", "depth"), ("fsdp2", "depth resumed"), ("fsdp2", "depth ramp")]
)
def test_sharded(request, one, kind, name):
    run = request.getfixturevalue(kind)[0][name]
    assert_same_weights(one[name.removesuffix(" resumed")], run)
    assert_unlocked(run, 10)
    if name == "depth":
        assert_same_logs(one["depth"], run)


@pytest.mark.parametrize("name", ["1:float32 depth", "2:float32 depth", "3:float32 depth", "2:float32 depth resumed"])
def test_zero(zero, one, name):
    """Both copies of a weight are written: that of the model and that of the optimizer."""
    assert_same_weights(one["float32 depth"], zero[0][name], WEIGHTS)
    assert_unlocked(zero[0][name], 2)


@pytest.mark.parametrize("stage", [1, 2])
def test_updates_that_grow_under_zero(zero, one, stage):
    """Both copies of a weight are held back, and by as much."""
    assert_same_weights(one["float32 depth ramp"], zero[0][f"{stage}:float32 depth ramp"], WEIGHTS)
    assert not torch.equal(one["float32 depth ramp"]["weights"], one["float32 depth"]["weights"])


def test_zero_resumed(zero, one):
    assert_same_weights(one["float32 depth"], zero[0]["3:float32 depth resumed"], WEIGHTS)
