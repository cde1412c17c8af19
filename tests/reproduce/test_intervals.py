"""Intervals in closed form."""

import math

import pytest

from scripts.reproduce.harness import intervals
from scripts.reproduce.harness.markdown import table


def test_clopper_and_pearson_at_the_ends():
    none, every = intervals.share(0, 24), intervals.share(24, 24)
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 24)))
    assert (every.value, every.low, every.high) == (1, pytest.approx(0.025 ** (1 / 24)), 1)


def test_the_mean_has_students_interval():
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at .975, standard deviation 1
    assert intervals.mean([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - half, 2 + half, 3))


def test_differences_are_paired_by_key():
    first, second = {1: 5.0, 2: 7.0, 3: 9.0, 4: 100.0}, {3: 6.0, 2: 5.0, 1: 4.0, 5: -100.0}
    assert intervals.paired(first, second) == pytest.approx(intervals.mean([1.0, 2.0, 3.0]))


def test_too_few_values_have_no_interval():
    assert intervals.mean([1.5]).text() == "1.500" and intervals.mean([]).text() == intervals.share(0, 0).text() == "-"
    assert intervals.share(6, 24).text(2) == "0.25 [0.10, 0.47]"


def test_empty_cells_are_one_space_wide():
    assert table(["", "a"], [("x", 1), ("", 2)], "---:") == ["| | a |", "| ---: | ---: |", "| x | 1 |", "| | 2 |"]
