"""The monitor's profiles on two processes are those of one: of the training batch, and of an odd number of probe batches."""

import pytest

from tests.distributed.compare import assert_same_profiles

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_sharded(request, one, kind, name):
    """ "balanced" profiles its batches, "paper" the probe."""
    assert_same_profiles(one[name], request.getfixturevalue(kind)[0][name], sharp=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_accumulated(request, one, kind):
    """Four microbatches on each of two processes have the moments of one batch on one."""
    assert_same_profiles(one["off"], request.getfixturevalue(kind)[0]["off accumulated"], sharp=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_zero(zero, one, stage, name):
    """DeepSpeed keeps its weights in float32: in a model of float64 the first profile is exact, and no other."""
    assert_same_profiles(one[f"{name} once"], zero[0][f"{stage}:{name} once"], sharp=True, first=True)
    assert_same_profiles(one[f"float32 {name}"], zero[0][f"{stage}:float32 {name}"], sharp=False)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_resumed(request, one, kind):
    """A resumed run leaves the history of an uninterrupted one."""
    assert_same_profiles(one["paper"], request.getfixturevalue(kind)[0]["paper resumed"], sharp=True)


def test_resumed_zero(zero, one):
    assert_same_profiles(one["float32 paper"], zero[0]["3:float32 paper resumed"], sharp=False)
