"""Bisection, and the quantile that stands for Table 5."""

import pytest

from scripts.reproduce.highest_rate.experiment import bisected, highest, tables, value

SETTINGS = {"between": {"recall": [0.001, 0.016]}, "until": 1.1}


def test_a_bracket_that_never_fails_ends_at_the_upper_end():
    low, high = bisected(lambda lr: False, 0.001, 0.016, 1.1)
    assert high == 0.016 and low < high <= 1.1 * low


def test_each_probe_halves_the_bracket():
    seen = []
    bisected(lambda lr: seen.append(lr) or lr > 0.005, 0.001, 0.016, 1.1)
    assert len(seen) == 5  # 16 = 1.1 ** 29, and 2 ** 5 > 29


def test_the_interval_of_a_few_seeds_holds_its_quantile():
    quantile, low, high = highest([0.002] * 4)
    assert low == quantile == high == pytest.approx(0.002)


def test_the_table_says_how_many_seeds_lie_at_an_end_and_pairs_them():
    rows = [
        {"task": "recall", "arm": arm, "seed": seed, "low": low, "high": 1.05 * low}
        for arm, lows in (("clip", [0.002, 0.004]), ("kss + clip", [0.004, 0.0155]))
        for seed, low in enumerate(lows)
    ]
    assert value(rows[0]) == pytest.approx(0.00205, rel=1e-3)
    line = tables(rows, SETTINGS).splitlines()[-1]
    assert line.split(" | ")[5] == "1"  # the seed at .016
    assert line.split(" | ")[6].startswith("2.78")  # the root of 2 times 3.875
