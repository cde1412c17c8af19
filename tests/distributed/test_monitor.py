"""The monitor's profiles on two processes are those of one: of the training batch, and of an odd number of probe batches."""

import pytest

from tests.distributed.compare import (
    assert_same_alignment,
    assert_same_attention,
    assert_same_curvature,
    assert_same_profiles,
)

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


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["balanced", "paper", "paper resumed", "off accumulated"])
def test_alignment(request, one, kind, name):
    """Weights that are spread over the processes are gathered, tokens are counted over all, and a resumed run goes on."""
    reference = {"paper resumed": "paper", "off accumulated": "off"}.get(name, name)
    assert_same_alignment(one[reference], request.getfixturevalue(kind)[0][name], sharp=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_alignment_zero(zero, one, stage):
    assert_same_alignment(one["balanced once"], zero[0][f"{stage}:balanced once"], sharp=False, first=True)
    assert_same_alignment(one["float32 balanced"], zero[0][f"{stage}:float32 balanced"], sharp=False)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["balanced", "paper", "off accumulated"])
def test_attention(request, one, kind, name):
    """The logit is the largest over all processes; weights that are spread are gathered."""
    reference = {"off accumulated": "off"}.get(name, name)
    assert_same_attention(one[reference], request.getfixturevalue(kind)[0][name], sharp=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_attention_zero(zero, one, stage):
    assert_same_attention(one["float32 balanced"], zero[0][f"{stage}:float32 balanced"], sharp=False)


def test_curvature(one, ddp, fsdp2):
    """Products are means over the processes; FSDP2 has parts of vectors, and gradients alone."""
    assert_same_curvature(one["curvature"], ddp[0]["curvature"], 1e-6, "double_backward")
    assert_same_curvature(one["curvature"], fsdp2[0]["curvature"], 5e-3, "central_differences")


def test_curvature_zero(zero, one):
    for stage in (1, 2):
        run = zero[0][f"{stage}:float32 curvature"]
        assert_same_curvature(one["float32 curvature"], run, 0.02, "double_backward")
    third = zero[0]["3:float32 curvature"]
    assert not [row for row in third["readings"] if row["monitor"] == "curvature"], "refused, and the run goes on"
    assert third["logs"][-1]["curvature/skipped"] == 4


def test_resumed_zero(zero, one):
    assert_same_profiles(one["float32 paper"], zero[0]["3:float32 paper resumed"], sharp=False)
