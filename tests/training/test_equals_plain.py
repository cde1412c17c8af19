"""Where KSS and the monitor have nothing to do, the run is the plain Trainer's to the bit: losses, norms and weights.

Dropout and shuffling are on, so one draw too many from the random state would show.
"""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_rksp import RKSPCallback, RKSPTrainer, RKSPTrainingArguments
from hf_rksp.config import MonitorConfig
from tests.training.common import (
    NEVER,
    assert_same_weights,
    gpt2,
    history,
    hooks,
    logged,
    moved,
    padded_rows,
    trained,
)

STEPS = {"max_steps": 20, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
PROBE = [{name: value[None] for name, value in row.items()} for row in padded_rows(6).rows]
NO_KSS, NO_MONITOR = {"kss": False}, {"spectrum": False}

CASES = {
    "weight 0": {"kss_weight": 0.0} | NO_MONITOR,
    "weight 0, paper": {"kss_weight": 0.0, "kss_schedule": "paper"} | NO_MONITOR,
    "both off": NO_KSS | NO_MONITOR,
    "nothing above the threshold": {"kss_upper_threshold": NEVER} | NO_MONITOR,
    "batches measured beforehand, nothing above": {"kss_upper_threshold": NEVER, "kss_exact_accumulation": True}
    | NO_MONITOR,
    "monitor on the batch": NO_KSS,
    "monitor on a probe": NO_KSS | {"spectrum_data": "probe", "probe": PROBE},
    "everything on, nothing above": {"kss_upper_threshold": NEVER, "spectrum_per_layer": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("plain"), gpt2(), padded_rows(), Trainer, TrainingArguments, **STEPS)


def assert_same_run(run, plain):
    assert run.state.global_step == 20
    assert history(run) == history(plain)
    assert_same_weights(run.model, plain.model)
    assert hooks(run.model) == 0


def test_the_plain_run_is_one_that_could_differ(plain, tmp_path):
    """The model learns, logs every step, and another random state gives other weights."""
    assert len(logged(plain, "loss")) == len(logged(plain, "grad_norm")) == 20
    assert moved(plain.model, gpt2()) > 1e-3
    other = trained(tmp_path, gpt2(), padded_rows(), Trainer, TrainingArguments, **STEPS, seed=43)
    assert history(other) != history(plain)


@pytest.mark.parametrize("name", CASES)
def test_trainer_is_the_plain_one(name, plain, tmp_path):
    run = trained(tmp_path, gpt2(), padded_rows(), **STEPS, **CASES[name])
    assert_same_run(run, plain)
    # What was on has been at work.
    assert len(logged(run, "kss/loss")) == (20 if "threshold" in str(CASES[name]) else 0)
    assert set(logged(run, "kss/loss")) <= {0.0}
    assert bool(logged(run, "spectrum/near_unit_mass/max")) == (CASES[name].get("spectrum", True))


def test_switches_of_the_trainer_itself(plain, tmp_path):
    """With arguments that know nothing of us."""
    off = {"kss": False, "monitor": False}
    run = trained(tmp_path, gpt2(), padded_rows(), RKSPTrainer, TrainingArguments, **STEPS, **off)
    assert_same_run(run, plain)


@pytest.mark.parametrize("data", ["batch", "probe"])
def test_callback_leaves_the_plain_trainer_as_it_is(data, plain, tmp_path):
    callback = RKSPCallback(MonitorConfig(every=3, data=data, rank=8), PROBE if data == "probe" else None, report=False)
    run = trained(tmp_path, gpt2(), padded_rows(), Trainer, TrainingArguments, **STEPS, callbacks=[callback])
    assert_same_run(run, plain)
    steps = [0, 3, 6, 9, 12, 15, 18, 19 if data == "batch" else 20]
    # A profile is logged with the step that it was made in, the one of step 0 with the first.
    rows = [row["step"] for row in run.state.log_history if "spectrum/near_unit_mass/max" in row]
    assert rows == [step + 1 for step in steps[:-1]] + [20]


def test_kss_that_acts_is_not_the_plain_run(plain, tmp_path):
    run = trained(tmp_path, gpt2(), padded_rows(), RKSPTrainer, RKSPTrainingArguments, **STEPS)
    assert moved(run.model, plain.model) > 1e-4
