"""The history of a run: each run has its own, nothing is lost, and a run goes on where it cannot be written."""

import errno
import shutil
from pathlib import Path

import pytest
from transformers import Trainer, TrainerCallback

from hf_rksp import RKSPCallback, RKSPTrainer
from hf_rksp.config import MonitorConfig
from hf_rksp.errors import OutputError
from hf_rksp.history.read import read_history
from hf_rksp.history.write import HistoryWriter
from hf_rksp.training.recorder import Recorder
from tests.training.common import assert_same_weights, gpt2, logged, trained, trainer

EVERY = MonitorConfig(every=1, rank=8)


def steps(file):
    return [row["step"] for row in read_history(file).readings]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_rksp")]


class After(TrainerCallback):
    """Does something to the folder of the run after step 2."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.action(Path(args.output_dir))


def takes_away(folder):
    (folder / "rksp_history.jsonl").unlink()


@pytest.mark.parametrize("how", ["full", "no folder", "no file"])
def test_a_history_that_cannot_be_written_any_more(how, tmp_path, monkeypatch, caplog):
    """With ours and beside a plain Trainer: said once, and the numbers are in the logs."""

    def fills(folder):
        opens = Path.open

        def full(path, mode="r", *args, **kwargs):
            if path.suffix == ".jsonl" and mode == "r+b":
                raise OSError(errno.ENOSPC, "No space left on device")
            return opens(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", full)

    usual = trained(tmp_path / "usual", gpt2(), None, Trainer)
    action = {"full": fills, "no folder": shutil.rmtree, "no file": takes_away}[how]
    for kind, more in ((RKSPTrainer, {"spectrum_every": 1, "kss": False, "run_report": True}), (Trainer, {})):
        caplog.clear()
        folder = tmp_path / kind.__name__
        callbacks = [After(action), *([RKSPCallback(EVERY)] if kind is Trainer else [])]
        run = trained(folder, gpt2(), None, kind, callbacks=callbacks, **more)
        monkeypatch.undo()
        assert run.state.global_step == 4 and len(logged(run, "spectrum/near_unit_mass/max")) == 4
        assert len([text for text in warnings_of(caplog) if "cannot be written any more" in text]) == 1
        assert_same_weights(run.model, usual.model)
        if how == "full":
            assert steps(folder / "rksp_history.jsonl") == [0]  # that of step 1 is solved after it
            assert (folder / "rksp_report.html").exists()


def test_a_history_that_cannot_be_begun(tmp_path, monkeypatch, caplog):
    def refuses(self, again):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(HistoryWriter, "_take", refuses)
    run = trained(tmp_path, gpt2())
    assert len(logged(run, "spectrum/near_unit_mass/max")) == 3 and not list(tmp_path.glob("*.jsonl"))
    (text,) = warnings_of(caplog)
    assert "Permission denied" in text and "output_dir=" in text


def test_two_runs_at_once_never_share_a_file(tmp_path):
    callbacks = [RKSPCallback(EVERY), RKSPCallback(EVERY)]
    trained(tmp_path, gpt2(), None, Trainer, callbacks=callbacks)
    files = [tmp_path / "rksp_history.jsonl", tmp_path / "rksp_history_2.jsonl"]
    assert [steps(file) for file in files] == [[0, 1, 2, 3]] * 2
    assert [callback.path for callback in callbacks] == files
    assert (tmp_path / "rksp_report.html").exists() and (tmp_path / "rksp_report_2.html").exists()


SAVED = {"save_strategy": "steps", "save_steps": 2, "spectrum_every": 1}


def test_a_resumed_run_goes_on_in_its_own_file(tmp_path):
    trained(tmp_path, gpt2(), **SAVED)
    first = (tmp_path / "rksp_history.jsonl").read_bytes()
    trained(tmp_path, gpt2(), **SAVED)
    second = (tmp_path / "rksp_history_2.jsonl").read_bytes()
    whole = read_history(tmp_path / "rksp_history_2.jsonl")
    run = trainer(tmp_path, gpt2(), **SAVED)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # of the second run
    assert run.rksp.path.name == "rksp_history_2.jsonl"
    assert (tmp_path / "rksp_history.jsonl").read_bytes() == first
    # What was written stays, and the steps that were made again are the same.
    assert (tmp_path / "rksp_history_2.jsonl").read_bytes().startswith(second)
    again = read_history(tmp_path / "rksp_history_2.jsonl")
    assert (again.logs, again.readings) == (whole.logs, whole.readings)
    assert [(event["what"], event["to"], event["attempt"]) for event in again.events] == [("resume", 2, 1)]
    assert {row["step"] for row in again.abandoned} == {3, 4}
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["rksp_history.jsonl", "rksp_history_2.jsonl"]


def test_a_run_that_is_resumed_in_the_folder_of_another_leaves_its_file_alone(tmp_path, caplog):
    trained(tmp_path / "a", gpt2(), **SAVED)
    trained(tmp_path / "b", gpt2(), learning_rate=1e-3, spectrum_every=1)
    other = (tmp_path / "b" / "rksp_history.jsonl").read_bytes()
    run = trainer(tmp_path / "b", gpt2(), **SAVED)
    run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert (tmp_path / "b" / "rksp_history.jsonl").read_bytes() == other
    assert steps(tmp_path / "b" / "rksp_history_2.jsonl") == [2, 3]
    assert any("holds the history of another run" in text for text in warnings_of(caplog))


def test_a_run_that_begins_again_before_its_first_step_keeps_its_name(tmp_path):
    """As Trainer's search for a batch size that fits does."""
    run = trainer(tmp_path, gpt2())
    step = run.training_step

    def fails(*args, **kwargs):
        raise MemoryError

    run.training_step = fails
    with pytest.raises(MemoryError):
        run.train()
    run.training_step = step
    run.train()
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["rksp_history.jsonl"]
    assert steps(tmp_path / "rksp_history.jsonl") == [0, 2, 3]


def test_writer(tmp_path):
    file = tmp_path / "folder" / "rksp_history.jsonl"
    writer = HistoryWriter(file, prefixes=["m"])
    writer.begin(setup={"name": "\udcff"})
    assert writer.barren and writer.attempt == 0
    for step in (1, 2, 3):
        writer.write("reading", monitor="m", step=step, values={})
        writer.log(step, {"loss": float("nan"), "eval_runtime": 1.0, "m/x": 1.0, "other/x": 1.0})
    mark = writer.mark
    assert mark[0] == file.stat().st_size and not writer.barren
    before = file.read_bytes() + b'{"kind": "log", "st'
    file.write_bytes(before)  # cut short by a kill
    again = HistoryWriter(file, 2, mark=mark)
    again.begin()
    assert file.read_bytes().startswith(before) and again.attempt == 1
    history = read_history(file)
    assert [row["step"] for row in history.logs] == [row["step"] for row in history.readings] == [1, 2]
    assert set(history.logs[0]) == {"kind", "step", "loss", "m/x"}
    assert [(row["kind"], row["step"]) for row in history.abandoned] == [("log", 3), ("reading", 3)]
    assert again.mark[0] == file.stat().st_size
    assert HistoryWriter(file, 2, mark=again.mark).attempt == 2
    assert HistoryWriter(file, 2, mark=(mark[0], mark[1] + 1)).path.name == "rksp_history_2.jsonl"
    with pytest.raises(OutputError, match=r"output_dir=.*that you may write to"):
        HistoryWriter(file / "below" / "rksp_history.jsonl")


def test_what_waits_for_the_next_log_survives_a_resume(tmp_path):
    settings = {"monitor": MonitorConfig(every=0, at_end=False), "logging_steps": 4, **SAVED}
    for kind in (None, Trainer):
        folder = tmp_path / str(kind)

        def make(kind=kind, folder=folder):
            given = dict(settings)
            if kind is Trainer:
                given = {"callbacks": [RKSPCallback(given.pop("monitor"))], **given}
            return trainer(folder, gpt2(), None, *([kind] if kind else []), **given)

        whole, again = make(), make()
        whole.train()
        again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        names = [{name for row in run.state.log_history for name in row} for run in (whole, again)]
        assert names[0] == names[1] and "spectrum/near_unit_mass/max" in names[0]
        assert logged(whole, "spectrum/near_unit_mass/max") == logged(again, "spectrum/near_unit_mass/max")


def test_two_callbacks_of_one_run_keep_apart(tmp_path):
    """Each goes on in its own file after a resume, with its own counts."""
    two = [EVERY, MonitorConfig(every=2, rank=4)]
    saving = {"save_strategy": "steps", "save_steps": 2}

    def run(folder, steps, **more):
        one = trainer(
            tmp_path / folder, gpt2(), None, Trainer, callbacks=list(map(RKSPCallback, two)), max_steps=steps, **saving
        )
        one.train(**more)

    run("whole", 4)
    run(
        "parts", 4, resume_from_checkpoint=str(shutil.copytree(tmp_path / "whole", tmp_path / "parts") / "checkpoint-2")
    )
    for name, profiled in (("rksp_history.jsonl", [0, 1, 2, 3]), ("rksp_history_2.jsonl", [0, 2, 3])):
        assert steps(tmp_path / "whole" / name) == steps(tmp_path / "parts" / name) == profiled
    assert len(list((tmp_path / "parts").glob("*.jsonl"))) == 2


def test_a_history_that_has_become_a_device_is_not_read(tmp_path, caplog):
    """Some of them never end."""

    def becomes(folder):
        (folder / "rksp_history.jsonl").unlink()
        (folder / "rksp_history.jsonl").symlink_to("/dev/null")

    run = trained(tmp_path, gpt2(), callbacks=[After(becomes)], spectrum_every=1, run_report=True)
    assert run.state.global_step == 4 and not warnings_of(caplog)


def test_kss_without_the_monitor_keeps_a_history_and_a_page(tmp_path):
    run = trained(tmp_path, gpt2(), spectrum=False, run_report=True)
    history = read_history(run.rksp.path)
    assert not history.readings and [row["kss/spectral_radius/max"] > 1 for row in history.logs[:4]] == [True] * 4
    page = (tmp_path / "rksp_report.html").read_text()
    assert "kss/loss" in page and "near_unit_mass" not in page


def test_a_checkpoint_that_does_not_name_its_history_says_so(tmp_path, caplog):
    trained(tmp_path, gpt2(), **SAVED)
    (tmp_path / "checkpoint-2" / "rksp_state.json").write_text('{"ema": []}')  # of another release
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text().replace('"hf_rksp"', '"another"'))
    trainer(tmp_path, gpt2(), **SAVED).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert any("does not say which history" in text for text in warnings_of(caplog))
    assert steps(tmp_path / "rksp_history.jsonl") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "kept",
    [
        True,
        {"history": True, "mark": True, "alarms": True},
        {"history": "../../elsewhere.jsonl", "mark": [1], "alarms": {"guard": "many"}},
        {"history": "/tmp/elsewhere.jsonl", "mark": ["a", "b"]},
        {"history": "notes.txt"},
    ],
)
def test_what_a_checkpoint_says_of_its_history_keeps_a_run_in_its_folder(kept, tmp_path):
    """Whatever a broken or a foreign checkpoint says."""
    run = tmp_path / "run"
    recorder = Recorder()
    recorder.open(run, 3, {}, [], kept)
    recorder.event(3, "run", "test", "Something happened.")
    history = recorder.close()
    assert history.parent == run and [path.name for path in tmp_path.iterdir()] == ["run"]
    assert recorder.alarms == {}
