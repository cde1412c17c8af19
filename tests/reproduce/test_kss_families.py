"""kss_families: the report of kss="auto"."""

import pytest

from scripts.reproduce.harness.rows import read
from scripts.reproduce.kss_families import experiment
from scripts.reproduce.kss_families.tables import MARGIN, PILOT, harms_of, tables


def row(seed, on, clip=2.0, kss=1.9, family="gpt2"):
    runs = {
        name: {"exploded": None, "lost_by_gradient": None, "loss": loss}
        for name, loss in (("clip", clip), ("kss", kss))
    }
    return {
        "family": family, "schedule": "constant", "lr": 0.002, "steps": 600, "arm": "auto, both", "seed": seed,
        "choice": {"on": on}, "runs": runs if on else {},
    }  # fmt: skip


def only(rows):
    (harm,) = harms_of(rows).values()
    return harm


def test_a_run_in_which_kss_is_off_counts_as_no_difference():
    harm = only([row(0, True, 2.0, 1.8), row(1, False), row(2, False), row(3, False)])
    assert (harm.runs, harm.on) == (4, 1) and harm.minus_clipping.value == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([-0.1, -0.11, -0.09], "harmless"), ([0.1, 0.11, 0.09], "harmful"), ([-0.3, 0.3, 0.0], "undecided")],
)
def test_verdicts(differences, verdict):
    harm = only([row(i, True, 2.0, 2.0 + each) for i, each in enumerate(differences)])
    assert harm.verdict == verdict, (harm, MARGIN)


def test_where_it_never_acts_the_runs_are_equal():
    harm = only([row(i, False) for i in range(3)])
    assert harm.verdict == "equal" and harm.minus_clipping.value == 0
    assert "| 0 of 3 | - | - |" in tables([row(i, False) for i in range(3)], {})


def test_lost_runs_are_those_of_the_runs_with_kss():
    harm = only([row(0, True, clip=3.0), row(1, True), row(2, False)])
    assert (harm.clip_lost, harm.auto_lost) == (1, 0)


def test_both_are_trained_where_auto_says_on_and_none_where_it_says_off(monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda job, arm: {"loss": 2.0, "arm": arm})
    settings, job = {"arms": {"clip": {"kss": None}, "kss": {"kss": {}}}}, {"arm": "auto, both"}
    for on, names in ((True, ["clip", "kss"]), (False, [])):
        monkeypatch.setattr(experiment, "decided", lambda job, on=on: {"on": on})
        assert list(experiment.run(job, settings)["runs"]) == names


def test_candidates_are_compared_with_the_pilot():
    rows = [row for row in read(PILOT) if row["arm"] == "kss" and row["family"] == "llama" and row["seed"] < 102]
    assert len(rows) == 4
    page = tables([row | {"arm": "kss, relative"} for row in rows], {})
    lines = [line.split(" | ") for line in page.splitlines()[2:]]
    assert [line[3] for line in lines] == ["clip", "kss", "kss, relative"] * 2
    assert all(line[4].endswith("of 2") for line in lines)
    assert lines[1][6] == lines[2][6] != "-"
