"""Numbers of layers as arrays: what a column of a heat map shows of several readings."""

import numpy

from hf_rksp.report.run.layered import labels_in, layered_of, names_in, steps_in


def reading(step, **layers):
    return {
        "step": step,
        "layers": [{"path": name, "stack": "h", "index": int(name[1:]), "x": x} for name, x in layers.items()],
    }


def test_a_column_has_the_largest_value_of_its_readings():
    layered = layered_of(
        [reading(0, h0=5.0, h1=None), reading(1, h0=2.0, h1=None), reading(2, h0=None), reading(3, h0=1.0, h2="text")]
    )
    values, there = layered.grid("x", numpy.array([0, 0, 1, 1]), 3, ["h2", "h1", "h0"])
    assert there.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert values[0, 2] == 5.0 and values[1, 2] == 1.0, "the largest, and a number beside what is not finite"
    assert numpy.isnan(values[0, 1]) and numpy.isnan(values[2]).all()
    assert not layered.grid("y", numpy.zeros(4, int), 1, ["h0", "h1", "h2"])[1].any()


def test_layers_are_in_the_order_of_the_longest_reading():
    one = layered_of([reading(4, h1=1.0), reading(6, h2=1.0, h0=1.0)])
    other = layered_of([reading(5, h3=1.0)])
    assert names_in([one, other]) == ["h2", "h0", "h1", "h3"] and labels_in([one, other]) == ["2", "0", "1", "3"]
    assert steps_in([one, other]) == [4, 5, 6] and one.counts.tolist() == [1, 2]


def test_a_copy_grows_by_itself():
    one = layered_of([reading(0, h0=1.0)])
    other = one.copy()
    other.add(reading(1, h0=2.0))
    assert one.steps.tolist() == [0] and other.steps.tolist() == [0, 1]
    assert one.last["h0"]["x"] == 1.0 and other.last["h0"]["x"] == 2.0
