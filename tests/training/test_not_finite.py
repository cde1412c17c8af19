"""States, spectra and gradients that are not finite: nothing raises, nothing crashes, nothing bad is added, all is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.not_finite import RUNS, STEPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all runs, from one process; if that crashed, the last name says where."""
    command = [sys.executable, "-m", "tests.training.not_finite", str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run"')]
    assert done.returncode == 0, f"{done.returncode} in {rows[-1:]}\n{done.stderr[-3000:]}"
    return {(row["run"], row["schedule"]): row for row in rows if "kss" in row}


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@pytest.mark.parametrize("name", RUNS)
def test_run_goes_on_and_stays_as_finite_as_the_plain_one(name, schedule, results):
    plain, kss = results[name, schedule]["plain"], results[name, schedule]["kss"]
    assert kss["steps"] == STEPS
    assert kss["bad"] == plain["bad"]
    assert kss["bad_weights"] == plain["bad_weights"]
    if name != "nan weight":
        assert plain["bad"] == [0] * STEPS
    if RUNS[name][2] == 4:  # every layer was dropped
        assert kss["losses"] == plain["losses"]


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@pytest.mark.parametrize("name", RUNS)
def test_what_was_left_out_is_counted_and_logged(name, schedule, results):
    dropped, expected = results[name, schedule]["kss"]["dropped"], RUNS[name][2]
    assert len(dropped) == STEPS
    if expected is not None:
        assert dropped == [expected * (step + 1) for step in range(STEPS)]
    # The reference of sequence 0 is NaN in the balanced schedule; the paper's term does not look at the task's gradient.
    if name == "nan in the gradient":
        assert (dropped[-1] > 0) == (schedule == "balanced")
    if name == "nan weight":
        assert dropped[-1] >= 3 * (STEPS - 1)
