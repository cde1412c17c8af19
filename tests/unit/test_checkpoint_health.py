"""Which checkpoint a run goes on from, and which are deleted: no training here."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from hf_rksp.doctor.health import healthy_before, rotate, to_go_on_from
from hf_rksp.doctor.mark import Mark, files_in, read_mark, write_mark
from hf_rksp.training.guard.disk import lacks_room
from hf_rksp.training.guard.health import Health, stretches_in


def mine(mark):
    return mark.run == "mine"


def checkpoints(run, marks, of="mine", first=0):
    """Folders with weights, a state and a mark each; ``marks``: step -> healthy. They were saved in this order."""
    for place, (step, healthy) in enumerate(marks.items(), first):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        if healthy != "none":
            save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
            write_mark(folder, Mark(step, healthy, "" if healthy is not False else "step 3 failed", run=of))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
        os.utime(folder / "trainer_state.json", (1000 + place, 1000 + place))
    return run


def left(run):
    return sorted(int(folder.name.split("-")[1]) for folder in run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("marks", "limit", "kept"),
    [
        ({1: True, 2: True, 3: True}, 2, [2, 3]),
        ({1: True, 2: False, 3: False, 4: None}, 2, [1, 4]),
        ({1: True, 2: False, 3: None}, 1, [1, 3]),
        ({1: True, 2: True, 3: False, 4: None}, 3, [1, 2, 4]),
        ({1: False, 2: False, 3: None}, 2, [2, 3]),
        ({1: True, 2: True, 3: True}, None, [1, 2, 3]),
        ({1: "none", 2: "none", 3: None}, 1, [3]),
        ({8: True, 9: None, 10: None}, 2, [8, 10]),
        ({60: True, 120: False, 80: None}, 2, [60, 80]),  # gone on from 60
        ({60: True, 120: None, 80: None}, 2, [60, 80]),
    ],
)
def test_rotation_keeps_the_last_healthy_one(tmp_path, marks, limit, kept):
    rotate(checkpoints(tmp_path, marks), limit, None)
    assert left(tmp_path) == kept


def test_rotation_does_not_keep_what_another_run_has_left(tmp_path):
    run = checkpoints(tmp_path, {20: True, 40: True}, of="another")
    for step in (10, 20, 30):
        checkpoints(run, {step + 1: None}, first=step)
        rotate(run, 1, None, run / f"checkpoint-{step + 1}", mine)
        assert left(run) == [step + 1]


def test_a_mark_that_is_written_later_makes_a_checkpoint_no_younger(tmp_path):
    run = checkpoints(tmp_path, {1: None, 2: None, 3: None})
    write_mark(run / "checkpoint-1", Mark(1, None, "", run="mine"))
    rotate(run, 2, None)
    assert left(run) == [2, 3]


def test_rotation_keeps_the_best_one(tmp_path):
    run = checkpoints(tmp_path, {1: False, 2: True, 3: True, 4: None})
    rotate(run, 1, str(run / "checkpoint-1"))
    assert left(run) == [1, 3, 4]


def test_a_mark_of_another_step_is_none(tmp_path):
    """A folder that was copied under another name."""
    run = checkpoints(tmp_path, {5: True})
    (run / "checkpoint-5").rename(run / "checkpoint-7")
    assert healthy_before(run, 10, 0, mine) is None


def test_the_last_healthy_one_at_a_step_or_before(tmp_path):
    run = checkpoints(tmp_path, {2: True, 4: True, 6: None, 8: True})
    checkpoints(tmp_path, {5: True}, of="another")
    assert [healthy_before(run, most, 0, mine)[0] for most in (4, 7, 9)] == [4, 4, 8]
    assert healthy_before(run, 1, 0, mine) is None and healthy_before(run, 9, 2, mine) is None
    (run / "checkpoint-4" / "optimizer.pt").write_bytes(b"cut")
    assert healthy_before(run, 7, 0, mine)[0] == 2


def test_moments_that_somebody_has_deleted(tmp_path):
    """A run goes on from such a checkpoint, as Trainer does; the guard does not go back to it."""
    run = checkpoints(tmp_path, {2: True, 4: "none"})
    (run / "checkpoint-4" / "optimizer.pt").write_bytes(b"moments")
    save_file({"weight": torch.ones(2)}, run / "checkpoint-4" / "model.safetensors")
    write_mark(run / "checkpoint-4", Mark(4, True, files=files_in(run / "checkpoint-4"), run="mine"))
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    assert to_go_on_from(run).folder.name == "checkpoint-4"
    assert healthy_before(run, 9, 0, mine)[0] == 2
    (run / "checkpoint-4" / "model.safetensors").unlink()
    choice = to_go_on_from(run)
    assert choice.folder.name == "checkpoint-2" and "model.safetensors is missing" in choice.left_out[0]


def test_an_adapter_with_a_name_of_its_own(tmp_path):
    run = checkpoints(tmp_path, {2: "none"})
    (run / "checkpoint-2" / "mine").mkdir()
    save_file({"lora": torch.ones(2)}, run / "checkpoint-2" / "mine" / "adapter_model.safetensors")
    assert to_go_on_from(run).folder.name == "checkpoint-2"
    save_file({"lora": torch.full((2,), torch.nan)}, run / "checkpoint-2" / "mine" / "adapter_model.safetensors")
    assert to_go_on_from(run).folder is None


def test_what_is_left_out_is_named(tmp_path):
    run = checkpoints(tmp_path, {2: True, 4: False, 6: "none"})
    choice = to_go_on_from(run)
    assert choice.folder.name == "checkpoint-2"
    assert [text.split()[0] for text in choice.left_out] == ["checkpoint-6", "checkpoint-4"]
    assert "weights missing" in choice.left_out[0] and "step 3 failed" in choice.left_out[1]
    assert to_go_on_from(tmp_path / "nothing").folder is None


def test_marks_of_a_run(tmp_path):
    run = checkpoints(tmp_path, {10: "none"})
    folder, health = run / "checkpoint-10", Health(run, 3)
    health.begin(0, {})
    health.saved(folder, 10, [], 0)
    for step in (9, 10, 11):  # step 9 was made before
        health.judged(step, [])
        assert read_mark(folder).healthy is None
    again = Health(run, 3)
    # A resumption begins to count anew.
    again.begin(12, stretches_in(json.loads(json.dumps(health.state_dict()))))
    for step in (12, 13, 14):
        again.judged(step, [])
    assert read_mark(folder).healthy is True
    again.judged(15, ["The loss is nan."])
    assert read_mark(folder).healthy is True, "what comes later does not change it"
    health.judged(12, ["The loss is nan."])
    assert read_mark(folder).why == "step 12 failed: The loss is nan."


def test_a_run_goes_back_to_its_own_checkpoints_alone(tmp_path):
    """Not to those of a run before it, nor of a stretch that was given up by a resumption from an earlier checkpoint."""

    def saved(health, step):
        checkpoints(tmp_path, {step: "none"}, first=step)
        save_file({"weight": torch.ones(2)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
        health.saved(tmp_path / f"checkpoint-{step}", step, [], 0)
        health.judged(step, [])

    first, second = Health(tmp_path, 1), Health(tmp_path, 1)
    first.begin(0, {})
    for step in (10, 20):
        saved(first, step)
    kept = first.state_dict()
    saved(first, 30)
    second.begin(0, {})
    assert second.last(40, 0) is None and first.last(40, 0)[0] == 30
    resumed = Health(tmp_path, 1)
    resumed.begin(20, stretches_in(kept))
    assert resumed.last(40, 0)[0] == 20, "30 is of the stretch that was given up"
    saved(resumed, 25)
    assert resumed.last(40, 0)[0] == 25


def test_a_stop_settles_what_was_saved_shortly_before(tmp_path):
    run = checkpoints(tmp_path, {10: "none"})
    health = Health(run, 3)
    health.begin(0, {})
    health.saved(run / "checkpoint-10", 10, [], 0)
    health.stopped(12)
    assert read_mark(run / "checkpoint-10").why == "the run was stopped at step 12"


def test_other_processes_write_no_marks(tmp_path):
    run = checkpoints(tmp_path, {10: "none"})
    health = Health(run, 1, writes=False)
    health.begin(0, {})
    health.saved(run / "checkpoint-10", 10, [], 0)
    health.judged(10, [])
    assert read_mark(run / "checkpoint-10") is None and health.last(20, 0) is None


def test_room_for_a_checkpoint(tmp_path, monkeypatch):
    run = checkpoints(tmp_path, {10: None})
    (run / "checkpoint-10" / "model.safetensors").write_bytes(b"0" * 1000)
    assert not lacks_room(run) and not lacks_room(run / "checkpoint-10")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900, "total": 9000})())
    assert lacks_room(run)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0, "total": 9000})())
    assert lacks_room(run)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0, "total": 0})())
    assert not lacks_room(run), "some file systems do not say"
