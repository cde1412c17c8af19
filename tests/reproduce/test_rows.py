"""A results file survives what stops its writer; failed jobs are rows; the budget ends a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.reproduce.harness import rows
from scripts.reproduce.harness.config import ExperimentError
from scripts.reproduce.harness.run import work

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("rest", [1, 40, -1])
def test_a_run_killed_in_the_middle_of_a_line_goes_on(experiment, rest):
    experiment()
    whole = experiment.results.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    cut = whole[: last + rest] if rest > 0 else whole[:rest]  # -1: the row is whole, its newline is not there
    experiment.results.write_bytes(cut)
    experiment.page.unlink()
    # A job more, so that something is appended in any case.
    experiment.write(config=(experiment.folder / "config.yaml").read_text().replace("seeds: 3", "seeds: 4"))
    assert experiment() == 0
    after = experiment.results.read_bytes()
    assert after.startswith(cut + b"\n{")
    keys = [(row["kind"], row["lr"], row["seed"]) for row in experiment.rows()]
    assert len(keys) == len(set(keys)) == 16
    assert experiment.page.read_text().count("\n") == 16


def test_jobs_that_have_a_row_do_not_run_again(experiment):
    experiment()
    before = experiment.results.read_bytes()
    assert experiment() == 0
    assert experiment.results.read_bytes() == before


def test_failed_jobs_are_rows_and_run_again_only_if_asked(experiment, capsys):
    experiment.flag("broken")
    assert experiment() == 1
    failed = [row for row in experiment.rows() if row["status"] == "failed"]
    assert {row["kind"] for row in failed} == {"other"} and len(failed) == 6
    assert failed[0]["error"] == "RuntimeError: this kind is broken" and "experiment.py" in failed[0]["traceback"]
    assert "6 failed with RuntimeError: this kind is broken" in capsys.readouterr().out
    assert "6 jobs failed and 0 have not run yet" in experiment.page.read_text()
    experiment.flag("broken", there=False)
    assert experiment() == 0 and len(experiment.rows()) == 12
    assert experiment("--retry") == 0 and len(experiment.rows()) == 18
    assert experiment.page.read_text().count("\n") == 12 and "failed" not in experiment.page.read_text()


def test_the_budget_ends_the_run_and_the_same_command_goes_on(experiment, capsys):
    experiment.flag("slow")
    assert experiment("--budget", str(0.5 / 3600)) == 0  # 12 jobs of 0.2 s on one worker
    first = len(experiment.rows())
    assert 1 <= first <= 3
    assert f"{12 - first} left" in capsys.readouterr().out
    assert not experiment.page.exists()
    experiment.flag("slow", there=False)
    assert experiment("--budget", "1") == 0 and len(experiment.rows()) == 12 and experiment.page.exists()


def test_a_job_handed_out_before_the_deadline_does_not_start_after_it(experiment):
    job = {"kind": "plain", "lr": 0.5, "seed": 0}
    assert work(experiment.folder, job, {"factor": 3}, deadline=time.time() - 1) == ""
    assert json.loads(work(experiment.folder, job, {"factor": 3}, deadline=time.time() + 60))["value"] == 1.5


def test_rows_have_what_is_needed_to_judge_them(experiment):
    experiment()
    row = experiment.rows()[0]
    assert list(row)[:3] == ["kind", "lr", "seed"] and row["status"] == "ok" and row["seconds"] >= 0
    assert row["versions"]["torch"] and row["date"].endswith("Z")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("{'seconds': 1}", "['seconds']"),
        ("{'lr': 1}", "['lr']"),
        ("{'value': object()}", "a object, which is no value of JSON"),
    ],
)
def test_a_row_that_cannot_be_written_is_a_failed_row(experiment, returned, says):
    experiment.write(code=f"def run(job, settings): return {returned}\ndef tables(rows, settings): return ''\n")
    assert experiment("--seeds", "1") == 1
    assert all(says in row["error"] for row in experiment.rows())


def test_numbers_of_numpy_and_numbers_that_are_not_finite_come_back(experiment):
    code = "import numpy\ndef run(job, settings): return {'a': numpy.float32(0.5), 'b': float('inf')}\n"
    experiment.write(code=code + "def tables(rows, settings): return ''\n")
    assert experiment("--seeds", "1") == 0
    assert all((row["a"], row["b"]) == (0.5, float("inf")) for row in experiment.rows())


def test_a_second_writer_is_refused(experiment, capsys):
    with rows.appending(experiment.results):
        with pytest.raises(ExperimentError, match="another run writes it"), rows.appending(experiment.results):
            pass
        assert experiment() == 2
    assert "another run writes it" in capsys.readouterr().err
    assert experiment() == 0


def test_ctrl_c_leaves_what_is_done_and_every_job_has_one_thread(experiment):
    experiment.flag("slow")
    experiment.write(config="settings: {factor: 3}\nreport: {seeds: 200, sweep: [{kind: plain, lr: 0.5}]}")
    command = [
        sys.executable,
        "-m",
        "scripts.reproduce",
        "toy",
        "--root",
        str(experiment.folder.parent),
        "--workers",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(experiment.rows()) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    assert 3 <= len(experiment.rows()) < 200
    assert {row["threads"] for row in experiment.rows()} == {"1"} and {row["status"] for row in experiment.rows()} == {
        "ok"
    }


def test_a_worker_that_is_killed_ends_the_run_with_a_remedy(experiment, capsys):
    experiment.flag("deadly")
    assert experiment("--workers", "2") == 2
    assert "fewer --workers" in capsys.readouterr().err
    # What another worker was about to hand over is lost with the pool.
    assert 2 <= len(experiment.rows()) <= 8 and all(row["seed"] < 2 for row in experiment.rows())
    experiment.flag("deadly", there=False)
    assert experiment() == 0 and len(experiment.rows()) == 12
