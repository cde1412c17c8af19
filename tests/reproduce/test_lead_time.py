"""When a run has failed, what an alarm and a warning are, what each fault does, and that every signal is read."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from scripts.reproduce.harness.cli import ROOT
from scripts.reproduce.harness.config import section
from scripts.reproduce.lead_time import experiment
from scripts.reproduce.lead_time.events import failure
from scripts.reproduce.lead_time.faults import WAYS, Corrupted, Moment, cut
from scripts.reproduce.lead_time.figure import figure
from scripts.reproduce.lead_time.replay import ROWS, guarded
from scripts.reproduce.lead_time.scores import DWELL, alarms_above, change, lasting, threshold
from scripts.reproduce.lead_time.signals import SIGNALS, cusum, forms, packed, unpacked
from scripts.reproduce.lead_time.tables import Multiple, alarms, fails, healthy, lead, line, multiples, tables
from scripts.reproduce.lead_time.tools import GUARD, SCALES, TOOLS, Tools, key

NAN, INF = math.nan, -math.inf


def test_a_spike_that_comes_back_is_no_failure():
    assert failure([2.0] * 100 + [5.0] * 10 + [2.0] * 100) is None


def test_an_explosion_is_one_also_if_the_run_ends_with_it():
    assert failure([2.0] * 100 + [3.0, 9.0, math.inf]) == 100


def test_a_change_is_measured_in_the_scatter_of_the_past():
    past = [1.0, 1.2] * 20
    assert change(np.array([[*past, 1.1, 5.0]]))[0, -1] > 20
    assert abs(change(np.array([[*past, 1.1]]))[0, -1]) < 1
    assert np.isnan(change(np.array([[1.0] * 5 + [9.0]]))).all()  # too short a past
    assert np.isnan(change(np.array([[*past, NAN]]))[0, -1])
    assert change(np.array([[0.0] * 40 + [0.1]]), 0.05)[0, -1] == pytest.approx(2)  # no scatter at all


def test_a_change_is_that_of_plain_medians():
    draw = np.random.default_rng(0)
    values = np.where(draw.random((3, 80)) < 0.4, NAN, draw.normal(size=(3, 80)))
    found = change(values)
    for layer, place in ((0, 50), (1, 79), (2, 20)):
        past = [one for one in values[layer, max(0, place - 40) : place - 4] if not math.isnan(one)]
        middle = np.median(past)
        scatter = max(1.4826 * np.median(np.abs(past - middle)), 0.02 * abs(middle))
        np.testing.assert_allclose(found[layer, place], (values[layer, place] - middle) / scatter)


def test_the_past_of_a_change_leaves_out_what_has_just_been_seen():
    """A change that has begun a few readings ago does not hide itself."""
    assert change(np.array([[1.0, 1.1] * 20 + [4.0] * 4]))[0, -4:].min() > 10


def row(failure_at=None, fault=True, way="bits", seed=0, begin=200, **more):
    if way == "rate" or not fault:
        begin = None
    return {
        "failure": failure_at, "fault": fault, "way": way, "seed": seed, "begin": begin, "planned": 600, "signals": {},
        "alarms": [], "losses": [2.0], "norms": [1.0], "tools": {name: {key(scale): [] for scale in SCALES} for name in TOOLS},
    } | more  # fmt: skip


def test_layers_are_judged_one_by_one_and_some_signals_in_both_directions():
    quiet, loud = [1.0, 1.1] * 20 + [1.0, 1.0], [100.0, 101.0] * 20 + [100.0, 100.0]
    moving = [1.0, 1.1] * 20 + [1.05, 9.0]
    found = forms(row(signals={"spectral radius": packed(np.array([loud, moving]))}), "spectral radius", 5)
    assert found["change"][-1] > 10 and found["level"][-1] == 100  # the level of the other hides it
    assert (
        forms(row(signals={"spectral radius": packed(np.array([loud, quiet]))}), "spectral radius", 5)["change"][-1] < 3
    )
    falling = packed(np.array([[0.5, 0.52] * 20 + [0.1], [NAN] * 41]))
    found = forms(row(signals={"near-unit mass": falling}), "near-unit mass", 5)
    assert found["change"][-1] > 10 and found["level"][-1] == pytest.approx(0.1, rel=1e-3)
    assert forms(row(signals={"spectral radius": falling}), "spectral radius", 5)["change"][-1] < 0


def test_numbers_are_kept_to_a_thousandth_whatever_their_size():
    values = np.array([[1e12, 1.2345678e-9, NAN], [0.0, -3.14159, 2.0]])
    np.testing.assert_allclose(unpacked(packed(values)), values, rtol=6e-4)


def test_losses_give_a_mean_and_norms_a_largest_value_between_readings():
    found = row(losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None], norms=[1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    assert forms(found, "loss", 5)["level"].tolist() == [1.0, 4.0]
    assert forms(found, "gradient norm", 5)["level"].tolist() == [1.0, 9.0]


def test_an_alarm_needs_all_readings_of_a_while():
    assert lasting(np.array([5.0, 5.0, 5.0, 1.0]))[1:].tolist() == [5.0, 5.0, 1.0]
    assert lasting(np.array([9.0, 1.0, 9.0]))[-1] == 1.0
    assert lasting(np.array([9.0, NAN, 8.0, NAN, 7.0])).tolist() == [INF, INF, 8.0, INF, 7.0]
    assert DWELL == 3


def test_a_new_healthy_run_has_an_alarm_with_the_wanted_probability():
    draw = np.random.default_rng(0)
    found = [draw.normal() > threshold([draw.normal(size=1) for _ in range(40)], 0.05) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(2 / 41, abs=0.011)
    assert threshold([np.zeros(1)] * 18, 0.05) == math.inf  # one of 19 would be too many
    assert alarms_above(np.array([1.0, 3.0, INF]), 2.0, 5) == [5]


def test_cusum_adds_up_what_stays_above_the_median():
    assert cusum([2.0] * 30).max() == 0
    assert cusum([2.0] * 30 + [2.3] * 5)[-1] == pytest.approx(5 * 0.25)


def test_a_warning_counts_between_the_fault_and_the_failure():
    failing = row(300)
    assert lead(failing, [250, 280], 5, 10) == 50
    assert lead(failing, [205, 280], 5, 10) is None  # one of its three readings is from before the fault
    assert lead(failing, [205, 280], 5, 0) == 95  # of a tool that judges each step none is
    assert lead(failing, [190, 280], 5, 0) is None
    assert lead(failing, [210, 280], 5, 10) == 90
    assert lead(failing, [300], 5, 10) is None and lead(failing, [], 5, 10) is None
    assert lead(failing, [195, 200, 250], 5, 10) is None  # it was on already
    assert lead(failing, [150, 250], 5, 10) == 50
    assert lead(row(100, way="rate"), [40, 70], 5, 10) == 30


def test_another_tool_gets_the_least_multiple_that_few_enough_healthy_runs_are_above():
    def healthy_run(seed, least):
        """Above every multiple below ``least``."""
        alarms = {key(scale): [9] if scale < least else [] for scale in SCALES}
        return row(fault=False, seed=500 + seed, tools={"trainpulse": alarms})

    quiet = [healthy_run(seed, 2.0 if seed else 4.0) for seed in range(40)]
    assert multiples(quiet, "trainpulse") == {"llama": Multiple(2.0, 1, 40)}, "one of 41 is few enough, and 39 are not"
    assert multiples(quiet[:10], "trainpulse") == {"llama": Multiple(8.0, 0, 10)}, "ten runs are too few"
    loud = [healthy_run(seed, 99) for seed in range(40)]
    (one,) = multiples(loud, "trainpulse").values()
    assert one == Multiple(8.0, 40, 40) and not one.few


def test_the_guard_of_the_rows_is_that_of_the_package():
    """Also of a run that is not finite: it ends there. After a change of its rule: python -m scripts.reproduce.lead_time.replay."""
    with ROWS.open(encoding="utf-8") as lines:
        rows = [json.loads(text) for text in itertools.islice(lines, 3)]
    assert [row["tools"][GUARD] for row in rows] == [guarded(row) for row in rows]
    spike = {"losses": [2.0] * 40 + [3.0] * 4 + [2.0, None], "norms": [1.0] * 45 + [None]}
    assert guarded(spike)[key(1.0)] == [42, 45] and guarded(spike)[key(8.0)] == [45]
    tools = Tools([GUARD])
    for step in range(40):
        tools.step(step, 2.0 + 0.01 * (step % 2), 1.0, {})
    assert not any(tools.alarms[GUARD].values())


def test_what_is_a_change_itself_has_one_form():
    rows = [row(fault=False, seed=500, losses=[2.0] * 60), row(250, losses=[2.0] * 60)]
    assert list(alarms(rows, "CUSUM of the loss", 5)) == ["level"]
    assert list(alarms(rows, "loss", 5)) == ["level", "change"]


def test_false_alarms_are_those_of_healthy_runs_and_those_before_a_fault():
    rows = [row(300), row(300), row(fault=False, seed=100), row(fault=False, seed=101), row(fault=False, seed=500)]
    found = line("x", rows, [[150, 250], [], [7], [], [9]], 5)
    assert found.leads == {0: 50, 1: None} and found.false == [True, False] and found.early == [True, False]


def test_what_fails_and_what_is_a_control():
    assert (
        fails(row(300)) and not fails(row(300, fault=False)) and not fails(row(150)) and not fails(row(300, seed=500))
    )
    assert fails(row(300, way="rate")) and healthy(row(way="rate")) and healthy(row(fault=False))
    assert not healthy(row()) and not healthy(row(300, fault=False))


def test_bits_are_cut_towards_zero_and_the_gradient_passes():
    x = torch.tensor([1.9921875, -1.9921875, 3.0], requires_grad=True)
    assert cut(x, 7).tolist() == [1.0, -1.0, 2.0]
    assert cut(x, 0) is x
    cut(x, 7).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_growing_share_of_passages_is_random_bytes():
    ids = torch.full((64, 8), 7)
    fault = Corrupted({"ramp": 10}, begin=4)
    shares = []
    for step in (3, 4, 11, 14):
        found, labels = fault.batch(step, ids, ids)
        assert torch.equal(found, labels) and 0 <= found.min() and found.max() < 256
        shares.append(float((found != ids).any(-1).double().mean()))
    assert shares[:2] == [0, 0] and 0.3 < shares[2] < 0.7 and shares[3] == 1  # .49 at step 11
    assert torch.equal(Corrupted({"ramp": 10}, math.inf).batch(100, ids, ids)[0], ids)


def test_a_moment_that_forgets_ends_at_the_last_gradient():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], betas=(0.9, 0.95))
    fault = Moment({"kept": 0.5}, begin=0)
    for step in range(14):
        fault.before(step, optimizer)
        weight.grad = torch.full((1,), 2.0)
        optimizer.step()
    assert float(optimizer.state[weight]["exp_avg_sq"]) == pytest.approx(0.05 * 4, rel=0.01)


def test_the_picture_has_the_lead_of_each_signal_and_way():
    """The radius alone moves, 40 steps before the failure; no other signal warns."""
    steady = {name: packed(np.full((2, 80), 1.0)) for name, one in SIGNALS.items() if one.monitor or one.key}
    moving = packed(np.concatenate([np.full((2, 54), 1.0), np.full((2, 26), 9.0)], axis=1))
    rows = [row(320, seed=seed, signals=steady | {"spectral radius": moving}) for seed in range(4)]
    rows += [row(fault=False, seed=500 + seed, signals=steady) for seed in range(40)]
    drawn = figure(rows, 5)
    assert drawn.alt.count(": 4 of 4") == 2 and "spectral radius, level: 4 of 4" in drawn.alt
    assert drawn.body.count(">40</text>") == 2


def test_the_report_has_the_runs_that_it_needs_and_no_seed_twice():
    jobs = section(ROOT / "lead_time").jobs
    assert len({job["seed"] for job in jobs if job["way"] != "rate"}) == sum(job["way"] != "rate" for job in jobs)
    for way in WAYS.keys() - {"rate"}:
        mine = [job for job in jobs if job["way"] == way and job["seed"] < 500]
        assert sum(job["fault"] for job in mine) == 8 and sum(not job["fault"] for job in mine) == 24


@pytest.fixture
def short(monkeypatch):
    class NoTools:
        alarms = row()["tools"]

        def step(self, *args):
            pass

    monkeypatch.setattr(experiment, "Tools", NoTools)
    text = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("scripts.reproduce.data.wikitext", lambda split: text)
    settings = section(ROOT / "lead_time").settings
    few = {"steps": 7, "every": 3, "every_curvature": 6, "begin": 3, "spread": 1, "sequences": 2, "length": 16}
    return settings | few


def test_every_signal_is_read_and_monitors_change_nothing(short):
    job = {"way": "bits", "fault": True, "seed": 0}
    found, plain = (experiment.run(job | {"watched": watched}, short) for watched in (True, False))
    for name in SIGNALS:
        assert np.isfinite(forms(found, name, 3)["level"]).any(), name
    assert found["losses"] == plain["losses"] and len(found["losses"]) == 7 and plain["signals"] == {}
    assert found["begin"] == 3 and not found.keys() & {*job, "watched"}
    control = experiment.run(job | {"fault": False, "watched": False}, short)
    assert control["begin"] is None and control["losses"][:3] == found["losses"][:3]
    assert tables([{**found, **job}, {**plain, **job}], short).startswith("| way |")
