"""Alarms: a deviation from the run's own past, that lasts; never learnt from, and no lock after a legitimate shift."""

import json

import numpy
import pytest

from hf_rksp.baseline import Baseline


def healthy(steps, series=3, seed=0):
    return 0.6 + 0.01 * numpy.random.default_rng(seed).normal(size=(steps, series))


def judged(baseline, rows):
    return [baseline.judge(row) for row in rows]


def test_a_collapse_that_lasts_is_an_alarm_once_and_names_the_series():
    rows = healthy(80)
    rows[50:, 1] += 0.3
    found = judged(Baseline(3, floor=0.005), rows)
    assert [(step, one.began) for step, one in enumerate(found) if one.began] == [(52, (1,))]
    assert found[50].deviation[1] > 8 and abs(found[50].deviation[0]) < 5


def test_one_or_two_readings_are_no_alarm():
    rows = healthy(80)
    rows[50:52, 1] += 0.3
    rows[60, 2] = 1.0
    assert not any(one.began for one in judged(Baseline(3, floor=0.005), rows))


def test_what_deviates_is_not_learnt_from():
    rows = healthy(140)  # long enough to fill the whole window with what deviates
    rows[40:, 0] += 0.2
    baseline = Baseline(3, floor=0.005, shift=200)
    assert all(one.deviation[0] > 8 for one in judged(baseline, rows)[40:])


def test_a_missing_reading_says_nothing():
    rows = healthy(60)
    rows[40:43, 0] += 0.3
    rows[41, 0] = numpy.nan
    found = judged(Baseline(3, floor=0.005), rows)
    assert not any(one.began for one in found), "two readings, and one that is none"
    assert numpy.isnan(found[41].deviation[0]) and not numpy.isnan(found[41].deviation[1])


def test_a_level_that_stays_becomes_the_window_with_one_event():
    rows = healthy(200)
    rows[60:, 2] += 0.2
    baseline = Baseline(3, floor=0.005)
    found = judged(baseline, rows)
    assert [step for step, one in enumerate(found) if one.shifted] == [91]
    assert found[91].shifted == (2,) and not baseline.alarmed.any()
    assert abs(found[150].deviation[2]) < 5, "it is judged by its new level"


def test_a_level_that_still_moves_is_no_shift():
    rows = healthy(150)
    rows[60:, 2] += numpy.linspace(0.2, 0.4, 90)
    baseline = Baseline(3, floor=0.005)
    assert not any(one.shifted for one in judged(baseline, rows)) and baseline.alarmed[2]


def test_an_alarm_ends_and_can_begin_again():
    rows = healthy(160)
    rows[50:60, 0] += 0.3
    rows[120:130, 0] += 0.3
    baseline = Baseline(3, floor=0.005)
    found = judged(baseline, rows)
    assert [step for step, one in enumerate(found) if one.began] == [52, 122] and not baseline.alarmed.any()


def test_constant_series_are_measured_by_the_floor():
    rows = numpy.full((60, 1), 0.5)
    rows[40:] = 0.503
    assert not any(one.began for one in judged(Baseline(1, floor=0.005), rows))


def test_resumed_goes_on_to_the_bit():
    rows = healthy(90)
    rows[50:, 1] += 0.3
    one, other = Baseline(3, floor=0.005), Baseline(3, floor=0.005)
    for row in rows[:51]:
        one.judge(row)
    state = json.loads(json.dumps(one.state_dict()))
    other.load_state_dict(state)
    assert other.judge(rows[51]).began == one.judge(rows[51]).began == ()
    assert other.judge(rows[52]).began == one.judge(rows[52]).began == (1,)
    with pytest.raises(ValueError):
        Baseline(4, floor=0.005).load_state_dict(state)


def test_false_alarms_of_healthy_series_are_rare():
    """Student's t with 4 degrees of freedom: tails far heavier than the normal ones."""
    rows = 0.6 + 0.01 * numpy.random.default_rng(1).standard_t(4, size=(500, 200))
    found = judged(Baseline(200, floor=0.005), rows)
    assert sum(len(one.began) for one in found) == 0
