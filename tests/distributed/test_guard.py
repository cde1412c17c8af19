"""The guard on two processes: one of them has NaN, and both leave the step out, or go back, as one process does."""

import pytest
import torch

from tests.distributed.compare import SHARP_WEIGHTS, WEIGHTS, assert_same_weights

pytestmark = pytest.mark.timeout(1200)
RUNS = [("ddp", "guard {}"), ("fsdp2", "guard {}"), *(("zero", f"{stage}:float32 guard {{}}") for stage in (1, 2, 3))]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("kind", "name"), RUNS)
@pytest.mark.parametrize("what", ["skip", "back"])
def test_the_gradients_are_there_before_the_weights_move(request, kind, name, what):
    """Under DeepSpeed too, whose engine makes the step within the backward pass."""
    for rank in request.getfixturevalue(kind):
        kept = rank[name.format(what)]["kept"]
        assert len(kept["ready"]) == len(kept["begun"]) and equal(kept["ready"], kept["begun"])


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_a_step_that_one_process_fails_is_left_out_on_both(request, one, kind, name):
    for rank in request.getfixturevalue(kind):
        run = rank[name.format("skip")]
        step = 1 if "float32" in name else 3
        moved = [not torch.equal(*pair) for pair in zip(run["kept"]["begun"], run["kept"]["ended"], strict=True)]
        assert moved == [place != step for place in range(len(moved))]
        alone = one[name.format("skip").split(":")[-1]]
        assert_same_weights(alone, run, WEIGHTS if "float32" in name else SHARP_WEIGHTS)


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_both_go_back_to_the_healthy_checkpoint(request, one, kind, name):
    for rank in request.getfixturevalue(kind):
        run = rank[name.format("back")]
        kept = run["kept"]
        assert torch.equal(kept["begun"][5], kept["ended"][1]), "the weights of checkpoint-2"
        alone = one[name.format("back").split(":")[-1]]
        assert_same_weights(alone, run, WEIGHTS if "float32" in name else SHARP_WEIGHTS)
    (event,) = [
        row for row in request.getfixturevalue(kind)[0][name.format("back")]["events"] if row["what"] == "rolled back"
    ]
    assert event["to"] == 2
