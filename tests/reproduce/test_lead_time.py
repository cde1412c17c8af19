"""When a run has failed, what an alarm is, and what each fault does."""

import math

import pytest
import torch

from scripts.reproduce.lead_time.events import failure
from scripts.reproduce.lead_time.faults import Moment, Stuck, cut
from scripts.reproduce.lead_time.scores import DWELL, all_alarms, change, runs_of, scores, threshold
from scripts.reproduce.lead_time.signals import _largest_change, _over, cusum
from scripts.reproduce.lead_time.tables import healthy, line

INF = -math.inf


def test_a_spike_that_comes_back_is_no_failure():
    assert failure([2.0] * 100 + [5.0] * 10 + [2.0] * 100) is None


def test_an_explosion_is_one_also_if_the_run_ends_with_it():
    assert failure([2.0] * 100 + [3.0, 9.0, math.inf]) == 100


def test_a_change_is_measured_in_the_scatter_of_the_past():
    past = [1.0, 1.2] * 20
    assert change([*past, 1.1, 5.0])[-1] > 20
    assert abs(change([*past, 1.1])[-1]) < 1
    assert change([1.0] * 5 + [9.0]) == [INF] * 6  # too short a past
    assert change([None, *past, None])[-1] == INF


def test_the_past_of_a_change_leaves_out_what_has_just_been_seen():
    """A change that has begun a few readings ago does not hide itself."""
    values = [1.0, 1.1] * 20 + [4.0] * 4
    assert min(change(values)[-4:]) > 10


def test_layers_are_judged_one_by_one():
    quiet, loud = [1.0, 1.1] * 20 + [1.0, 1.0], [100.0, 101.0] * 20 + [100.0, 100.0]
    moving = [1.0, 1.1] * 20 + [1.05, 9.0]
    together = _largest_change([loud, moving])
    assert together[-1] > 10 and _largest_change([loud, quiet])[-1] < 3
    assert _over([loud, moving], "worst")[-1] == 100  # the level of the other hides it
    assert _over([[1.0, None], [3.0, None]], "mean") == [2.0, None]


def test_an_alarm_needs_all_readings_of_a_while():
    assert runs_of([5.0, 5.0, 5.0, 1.0])[1:] == [5.0, 5.0, 1.0]
    assert runs_of([9.0, 1.0, 9.0])[-1] == 1.0
    every_other = [9.0, INF, 8.0, INF, 7.0]
    assert runs_of(every_other) == [INF, INF, 8.0, INF, 7.0]
    assert DWELL == 3


def test_the_threshold_lets_a_share_of_the_healthy_runs_have_an_alarm():
    runs = [[float(top), 0.0] for top in range(40)]
    above = threshold(runs, 0.05)
    assert sum(bool(all_alarms(run, above, 5)) for run in runs) == 2
    assert threshold([], 0.05) == math.inf and threshold([[INF]], 0.05) == math.inf


def test_a_form_that_was_not_kept_is_made_from_the_level():
    level = [1.0, 1.1] * 20 + [9.0]
    assert scores({"level": level}, "change") == change(level)
    assert scores({"level": level, "change": [None, 2.0]}, "change") == [INF, 2.0]


def test_cusum_adds_up_what_stays_above_the_median():
    flat = cusum([2.0] * 30)
    assert max(flat) == 0
    assert cusum([2.0] * 30 + [2.3] * 5)[-1] == pytest.approx(5 * 0.25)


def row(failure_at=None, fault=True, way="bits", seed=0, begin=200):
    return {"failure": failure_at, "fault": fault, "way": way, "seed": seed, "begin": begin, "planned": 600}


def test_a_warning_counts_between_the_fault_and_the_failure():
    rows = [row(300), row(300), row(300), row(fault=False, seed=100)]
    alarms = [[250, 280], [150], [300], []]
    _, false, hits, *_, lead, share = line("x", rows, alarms.__getitem__, ["bits"], 5)
    assert hits == "1 of 3" and lead == "50" and share == "8.3%"
    assert false.startswith("0.25")  # of four chances the one before the fault


def test_what_survives_its_fault_is_no_control():
    assert not healthy(row(fault=True)) and healthy(row(fault=False)) and healthy(row(way="rate"))


def test_bits_are_cut_towards_zero_and_the_gradient_passes():
    x = torch.tensor([1.9921875, -1.9921875, 3.0], requires_grad=True)
    assert cut(x, 7).tolist() == [1.0, -1.0, 2.0]
    assert cut(x, 0) is x
    cut(x, 7).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_stuck_loader_hands_out_one_batch_for_a_while():
    fault = Stuck({"batches": 2}, begin=1)
    batches = [torch.full((1, 2), step) for step in range(4)]
    seen = [fault.batch(step, batch, batch)[0][0, 0].item() for step, batch in enumerate(batches)]
    assert seen == [0, 1, 1, 3]


def test_a_moment_that_forgets_ends_at_the_last_gradient():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], betas=(0.9, 0.95))
    fault = Moment({"kept": 0.5}, begin=0)
    for step in range(12):
        weight.grad = torch.full((1,), 2.0)
        optimizer.step()
        fault.after(step, None, optimizer)
    optimizer.step()
    assert float(optimizer.state[weight]["exp_avg_sq"]) == pytest.approx(0.05 * 4, rel=0.01)
