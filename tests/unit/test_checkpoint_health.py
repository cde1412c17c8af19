"""Which checkpoint a run goes on from, and which are deleted: no training here."""

import json

import pytest

from hf_rksp.doctor.health import healthy_before, rotate, to_go_on_from
from hf_rksp.doctor.mark import Mark, read_mark, write_mark
from hf_rksp.training.guard.disk import lacks_room
from hf_rksp.training.guard.health import Health


def checkpoints(run, marks):
    """Folders with a state and a mark each; ``marks``: step -> healthy."""
    for step, healthy in marks.items():
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
        if healthy != "none":
            write_mark(folder, Mark(step, healthy, "" if healthy is not False else "step 3 failed"))
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
    ],
)
def test_rotation_keeps_the_last_healthy_one(tmp_path, marks, limit, kept):
    rotate(checkpoints(tmp_path, marks), limit, None)
    assert left(tmp_path) == kept


def test_rotation_keeps_the_best_one(tmp_path):
    run = checkpoints(tmp_path, {1: False, 2: True, 3: True, 4: None})
    rotate(run, 1, str(run / "checkpoint-1"))
    assert left(run) == [1, 3, 4]


def test_a_mark_of_another_step_is_none(tmp_path):
    """A folder that was copied under another name."""
    run = checkpoints(tmp_path, {5: True})
    (run / "checkpoint-5").rename(run / "checkpoint-7")
    assert healthy_before(run, 10, 0) is None


def test_the_last_healthy_one_at_a_step_or_before(tmp_path):
    run = checkpoints(tmp_path, {2: True, 4: True, 6: None, 8: True})
    assert [healthy_before(run, most, 0)[0] for most in (4, 7, 9)] == [4, 4, 8]
    assert healthy_before(run, 1, 0) is None and healthy_before(run, 9, locked=2) is None
    (run / "checkpoint-4" / "optimizer.pt").write_bytes(b"cut")
    assert healthy_before(run, 7, 0)[0] == 2


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
    health.saved(folder, 10, [], 0)
    for step in (9, 10, 11):  # step 9 was made before
        health.judged(step, [])
        assert read_mark(folder).healthy is None
    again = Health(run, 3)
    again.begin(12)  # a resumption begins to count anew
    for step in (12, 13, 14):
        again.judged(step, [])
    assert read_mark(folder).healthy is True
    again.judged(15, ["The loss is nan."])
    assert read_mark(folder).healthy is True, "what comes later does not change it"
    health.judged(12, ["The loss is nan."])
    assert read_mark(folder).why == "step 12 failed: The loss is nan."


def test_other_processes_write_no_marks(tmp_path):
    run = checkpoints(tmp_path, {10: "none"})
    health = Health(run, 1, main_process=False)
    health.saved(run / "checkpoint-10", 10, [], 0)
    health.judged(10, [])
    assert read_mark(run / "checkpoint-10") is None and health.last(20, 0) is None


def test_room_for_a_checkpoint(tmp_path, monkeypatch):
    run = checkpoints(tmp_path, {10: None})
    (run / "checkpoint-10" / "model.safetensors").write_bytes(b"0" * 1000)
    assert not lacks_room(run) and not lacks_room(run / "checkpoint-10")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900})())
    assert lacks_room(run)
