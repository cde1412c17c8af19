"""The axes of charts: no label is cut, none lies on another, every tick is where its number says."""

import re
from itertools import pairwise

import numpy
import pytest

from hf_rksp.report.kit.chart import Plot, step_ticks, thinned, ticks, with_margin

PLOT = Plot(left=66, right=428, top=30, base=194, edge=440)
#: Width of a character in the widest font that the pages are tested with, at the size of a phone.
LETTER = 10.2


def labels(axis):
    """Left end, right end and text of each label of an x axis."""
    found = []
    for x, anchor, text in re.findall(r'<text x="([\d.]+)" y="211" class="([me])">([^<]+)<', axis):
        width = LETTER * len(text)
        start = float(x) - (width if anchor == "e" else width / 2)
        found.append((start, start + width, text))
    return found


@pytest.mark.parametrize("steps", [1, 10, 400, 999, 1_000, 1_001, 10_000, 99_999, 100_000, 2_000_000])
def test_the_last_step_is_labelled_inside_the_drawing(steps):
    scale = PLOT.x(0, steps)
    found = labels(PLOT.x_axis(step_ticks(scale), "step"))
    assert len(found) >= 2
    assert max(end for _, end, _ in found) <= PLOT.edge
    for (_, end, _), (start, _, _) in pairwise(found):
        assert end < start
    if steps in (10, 400, 1_000, 10_000, 100_000, 2_000_000):
        assert found[-1][2] == f"{steps:,}"


def test_ticks_of_powers_of_ten_are_where_they_say():
    for low, high in ((-3.2, 4.7), (0.1, 0.4), (0.0, 1.9), (2.0, 2.02)):
        scale = PLOT.y(low, high, log=True)
        found = ticks(scale)
        assert len(found) >= 2
        for y, label in found:
            digits = label.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
            value = 10.0 ** float(digits[2:]) if label.startswith("10") and label[2:] != digits[2:] else None
            value = value or float(label.replace(",", ""))
            assert y == pytest.approx(scale(value), abs=0.3)


def test_an_axis_holds_every_value_with_room():
    for values in ([3.0, 3.1], [0.0, 5.0], [-2.0, 7.0], [4.0], []):
        low, high = with_margin(numpy.array(values))
        assert all(low <= value < high for value in values) and low < high
    low, high = with_margin(numpy.array([1e-3, 1e5]), log=True)
    assert low < -3 and high > 5


def test_thinning_keeps_ends_and_extremes():
    x = numpy.arange(10_000) / 50
    y = numpy.sin(numpy.arange(10_000))
    y[5_001] = 90.0
    kept = thinned(x, y, 600)
    assert len(kept) < 1_300 and kept[0] == 0 and kept[-1] == 9_999 and 5_001 in kept
    assert thinned(x[:600], y[:600], 600).tolist() == list(range(600))
