"""In which direction a quantity changes, in words."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_rksp.zoo import read_shelf
from hf_rksp.zoo.pages import trends
from hf_rksp.zoo.pages.trajectories import Trajectory, late_gains
from hf_rksp.zoo.render import all_models


class Fake:
    """An entry with given thirds."""

    def __init__(self, values):
        self.thirds = dict(zip(("early", "middle", "late"), values, strict=True))

    def mean(self, quantity, third=None):
        return self.thirds[third]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((0.1, 0.2, 0.3), "increases"),
        ((0.3, 0.2, 0.1), "decreases"),
        ((0.2, 0.3, 0.2), "no clear trend"),
        ((0.2, 0.21, 0.2), "constant"),
        ((0.20, 0.24, 0.23), "increases"),  # a step back of less than .02 is noise
        ((0.24, 0.20, 0.21), "decreases"),
        ((0.20, 0.24, 0.21), "no clear trend"),
    ],
)
def test_over_depth(values, word):
    assert trends.over_depth(Fake(values)) == (word, values)
    assert trends.over_depth(Fake((*values[:2], None))) is None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((1.0, 1.5, 2.0), "increases"),
        ((2.0, 1.5, 1.0), "decreases"),
        ((1.66, 1.64, 1.65), "constant"),
        ((0.40, 0.43), "increases"),
        ((1.0, 2.0, 1.0), "no clear trend"),
    ],
)
def test_direction(values, word):
    assert trends.direction(values) == word


def test_trends_need_all_their_models_in_one_size(zoo):
    entries = {entry.model.id: entry for entry in read_shelf(zoo, all_models(zoo)).entries}
    tiny, wide = entries["tiny-gpt2-init"], entries["wide-gpt2-init"]

    def standing_for(entry, key):
        return replace(entry, model=replace(entry.model, published=key))

    raised = json.loads(json.dumps(tiny.report))
    raised["profile"]["aggregates"]["nonlinearity_ratio"]["mean"] += 0.1
    more = replace(tiny, reports={1: raised, 2: raised})
    assert trends.trend_results([standing_for(tiny, "kan-b4"), standing_for(wide, "kan-b8")]) == []
    assert trends.trend_table([]) is None
    results = trends.trend_results(
        [standing_for(more, "kan-b8"), standing_for(wide, "kan-b8"), standing_for(tiny, "kan-b4")]
    )
    rows = trends.trend_table(results).rows
    assert [row[1:3] for row in rows] == [
        ("3 blocks of width 32", "nonlinearity ratio (η_nl)"),
        ("3 blocks of width 32", "reliable share of modes"),
    ]
    assert rows[0][3] == "0.78, 0.82" and rows[0][5] == "increases in both"
    assert rows[1][5] == "decreases in the paper; constant here"
    assert {result.tokens for result in results} == {256}


@pytest.mark.parametrize(("late", "gains"), [(0.30, ["GPT-2"]), (0.203, []), (0.1, [])])
def test_training_moves_nonlinearity_to_the_late_layers(late, gains):
    rows = tuple(SimpleNamespace(entry=Fake((0.2, 0.2, value))) for value in (0.2, 0.9, late))
    assert late_gains([Trajectory("GPT-2", rows)]) == (gains, 1)
