"""KSS on two processes under DDP, resumed, and with accumulated gradients."""

import pytest
import torch

from tests.distributed.compare import (
    SHARP_LOGS,
    assert_same_logs,
    assert_same_profiles,
    assert_same_run,
    assert_same_weights,
    difference,
)
from tests.distributed.conftest import DDP, reference
from tests.distributed.workers.cases import CASES, LAYERS, STEPS

# The first test of a kind waits for all of its trainings, and for those of one process.
pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("name", DDP)
def test_two_processes_are_one(ddp, one, name):
    assert_same_run([rank[name] for rank in ddp], one[reference(name)], "ddp", sharp=CASES[name].double)


def test_ranks_have_unequal_shares(ddp):
    """Else the tests above would not see a wrong weight of a rank."""
    for name in ("balanced", "paper", "paper accumulated"):
        first, second = (rank[name]["given"] for rank in ddp)
        for what in ("width", "labels"):
            unequal = sum(a[what] != b[what] for a, b in zip(first, second, strict=True))
            assert unequal > len(first) / 2, f"{name}: {what} are nearly always equal"


@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_shaping_is_felt(one, name):
    """Else the tests above would pass without any KSS. Even in float32 they tolerate a thousandth of the effect."""
    logs = one[name]["logs"]
    assert logs[0]["kss/layers_above"] == 1
    assert sum(row["kss/layers_above"] for row in logs) / len(logs) > 0.5
    assert all(row["kss/dropped"] == 0 for row in logs)
    largest, mean = difference(one["off"], one[name])
    assert largest > 1e-2 and mean > 5e-4
    if name == "paper":  # the term in the loss, over the task's own
        assert logs[0]["loss"] / logs[0]["kss/task_loss"] > 1.03


def test_draw_of_layers(one, ddp):
    """Half of the layers, other ones at other steps, the same on all ranks and after a resume."""
    drawn = one["paper"]["drawn"]
    assert len(drawn) == STEPS and {len(layers) for layers in drawn} == {round(LAYERS / 2)}
    assert len({tuple(layers) for layers in drawn}) == LAYERS  # every pair of three layers comes up
    for rank in ddp:
        assert rank["paper"]["drawn"] == rank["paper resumed"]["drawn"] == drawn
        assert len(rank["paper resumed"]["given"]) == STEPS // 2, "the second half has to come from the checkpoint"


def test_cut_into_microbatches_without_kss(one, ddp):
    """Weight 0: 1 x 8, 4 x 2, on two processes 4 x 2, and 8 x 1 are the same run."""
    for other in (
        one["off one by one"],
        one["off accumulated"],
        *(r["off accumulated"] for r in ddp),
    ):
        assert_same_weights(one["off"], other)


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@pytest.mark.parametrize("cut", ["exact", "exact one by one"])
def test_exact_accumulation(one, schedule, cut):
    """1 x 8 and 4 x 2 are 8 x 1, with sequences and numbers of labels that differ: the same logs, profiles and weights."""
    whole, parts = one[schedule], one[f"{schedule} {cut}"]
    assert_same_logs(whole, parts)
    assert_same_profiles(whole, parts, sharp=True)
    assert_same_weights(whole, parts)


def test_exact_accumulation_of_means(one):
    """Also where Trainer divides the loss by the number of microbatches."""
    whole, parts = one["paper mean equal"], one["paper mean exact one by one"]
    assert_same_logs(whole, parts)
    assert_same_weights(whole, parts)


@pytest.mark.parametrize("schedule", ["balanced", "paper", "paper mean"])
def test_cut_of_copies(one, schedule):
    """KSS sees the cut through the operator alone, which is that of a microbatch and not of the step.

    In a batch of copies each microbatch has the operator of the whole batch. Weights, bounds and norms of what is added are
    taken sequence by sequence, or averaged over microbatches, so nothing is left that depends on the cut.
    """
    whole, parts = one[f"{schedule} copies"], one[f"{schedule} copies one by one"]
    assert_same_weights(whole, parts)
    assert all(row["kss/layers_above"] > 0 for row in whole["logs"])


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@pytest.mark.parametrize("data", ["equal", "long"])
def test_cut_of_different_sequences(one, schedule, data):
    """8 x 1 is not 1 x 8 with KSS by default: eight operators of 24 or 96 tokens each are not the operator of 192 or 768.

    Directions fit the microbatch too. The two runs shape to the same extent and in a like direction, no more.
    """
    whole, parts, off = (one[run] for run in (f"{schedule} {data}", f"{schedule} {data} one by one", f"off {data}"))
    effect, other = whole["weights"] - off["weights"], parts["weights"] - off["weights"]
    assert 0.5 < float(other.norm() / effect.norm()) < 1.5
    assert float(torch.cosine_similarity(effect, other, dim=0)) > 0.4
    # The task comes first in the forward pass, and its share does not depend on the cut.
    task = [run["logs"][0]["kss/task_loss"] for run in (whole, parts)]
    assert task[0] == pytest.approx(task[1], rel=SHARP_LOGS["kss/task_loss"])
    assert whole["logs"][0]["kss/loss"] != pytest.approx(parts["logs"][0]["kss/loss"], rel=0.01)
