"""A run that is killed and resumed leaves what the uninterrupted one leaves, to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from hf_rksp.history.read import read_history
from tests.training.common import assert_same_weights
from tests.training.resumed import make

ROOT = Path(__file__).parents[2]
TIMES = ("runtime", "per_second")
LOSSES = ("loss", "kss/task_loss")
#: Saved at 4 and 8, killed in step 9: a log and a profile came after the checkpoint, and are forgotten.
ALIGNED = {"logging_steps": 2, "save_steps": 4}
#: The checkpoint of step 4 lies between the logs of steps 3 and 6; so does the profile that ended with step 4.
BETWEEN = {"logging_steps": 3, "save_steps": 4, "spectrum_every": 3}


def killed_and_resumed(folder, settings, step):
    command = [sys.executable, "-m", "tests.training.resumed", str(folder), json.dumps(settings), str(step)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == -9, done.stderr[-3000:]
    checkpoint = get_last_checkpoint(str(folder))
    run = make(folder, settings)
    run.train(resume_from_checkpoint=checkpoint)
    return run, int(checkpoint.rsplit("-", 1)[1])


def whole(folder, settings):
    run = make(folder, settings)
    run.train()
    return run


def told(row):
    """A row of a log. Losses to six digits: torch 2.6 rounds their means as memory happens to be aligned."""
    return {name: float(f"{value:.6g}") if name in LOSSES else value for name, value in row.items()}


def rows(run):
    """Every row of the log, without times; the last one is the summary of the run."""
    return [told({k: v for k, v in row.items() if not any(t in k for t in TIMES)}) for row in run.state.log_history]


def differing(one, other):
    """(step, name) of all that differs between two logs."""
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(other)]
    pairs = zip(rows(one), rows(other), strict=True)
    return {(a["step"], name) for a, b in pairs for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def same(a, b):
    """Equality to the bit of nested containers of tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_killed_run_goes_on_to_the_bit(schedule, tmp_path):
    settings = ALIGNED | {"kss_schedule": schedule, "kss_every": 1 if schedule == "balanced" else 3}
    run, start = killed_and_resumed(tmp_path / "killed", settings, 7)
    assert start == 4
    reference = whole(tmp_path / "whole", settings)
    assert_same_weights(run.model, reference.model)
    # Trainer's own mean over the run counts the steps of the last start alone.
    assert differing(run, reference) == {(12, "train_loss")}
    last = [Path(r.args.output_dir, "checkpoint-12") for r in (run, reference)]
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in last)
        assert same(one, other), name
    states = [json.loads((folder / "rksp_state.json").read_text()) for folder in last]
    for state in states:  # the file of the resumed run has the rows of its first attempt too
        assert state.pop("recorder")["history"] == "rksp_history.jsonl"
    for state in states:  # the names of the stretches of a run are drawn
        state["guard"].pop("health")
    assert states[0] == states[1] and states[0]["kss"]["steps"] == 12
    # The history holds the same rows: it keeps no times, and not that mean.
    one, other = (read_history(r.args.output_dir) for r in (run, reference))
    assert (
        list(map(told, one.logs)) == list(map(told, other.logs))
        and one.readings == other.readings
        and len(one.readings) == 7
    )
    assert [event["what"] for event in one.events] == ["resume"] and not other.events


def test_checkpoint_between_two_logs(tmp_path):
    """Trainer forgets the losses from the last log to the checkpoint; KSS's means over the same steps are kept.

    So are the numbers of a profile that waits for the next log.
    """
    plain = BETWEEN | {"plain": True}
    plain_run, start = killed_and_resumed(tmp_path / "plain", plain, 7)
    assert start == 4
    theirs = differing(plain_run, whole(tmp_path / "plain_whole", plain))
    assert theirs == {(6, "loss"), (12, "train_loss")}
    run, _ = killed_and_resumed(tmp_path / "ours", BETWEEN, 7)
    reference = whole(tmp_path / "whole", BETWEEN)
    assert_same_weights(run.model, reference.model)
    assert differing(run, reference) == theirs | {(6, "kss/task_loss")}
    readings = [read_history(r.args.output_dir).readings for r in (run, reference)]
    assert readings[0] == readings[1] and len(readings[0]) == 5
