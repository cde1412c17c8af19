"""kss_families: the report of kss="auto"."""

import itertools
from dataclasses import replace

import pytest
import torch

from scripts.reproduce.harness.rows import read
from scripts.reproduce.kss_families import experiment
from scripts.reproduce.kss_families.figure import picture
from scripts.reproduce.kss_families.networks import FAMILIES, make
from scripts.reproduce.kss_families.rules import RANDOM, shaper_of
from scripts.reproduce.kss_families.tables import MARGIN, PILOT, harms_of, tables
from scripts.reproduce.kss_families.train import train


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


def test_the_picture_has_the_cells_in_which_kss_acts_and_counts_the_others():
    acting = [row(i, True, clip=3.0) | {"lr": 0.008} for i in range(3)]
    made = picture([*acting, *[row(i, False, family="rwkv") for i in range(3)]])
    assert made.alt == "GPT-2, 0.008: mean of the runs; line: 95% interval -1.1, 3 of 3 lost, with KSS 0"
    assert "At 1 more KSS acts in no run." in made.caption


def test_lost_runs_are_those_of_the_runs_with_kss():
    harm = only([row(0, True, clip=3.0), row(1, True), row(2, False)])
    assert (harm.clip_lost, harm.auto_lost) == (1, 0)


def test_both_are_trained_where_auto_says_on_and_none_where_it_says_off(monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda job, arm, given: ({"loss": 2.0, "arm": arm}, {}))
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


def test_clipping_alone_is_compared_with_nothing():
    rows = [row for row in read(PILOT) if row["arm"] == "clip" and row["family"] == "llama" and row["seed"] < 102]
    lines = [line.split(" | ") for line in tables(rows, {}).splitlines()[2:]]
    assert [line[3] for line in lines] == ["clip"] * 2


#: As a job of section `why`, at a rate at which KSS acts from the beginning.
JOB = {"family": "gpt2, rmsnorm", "schedule": "constant", "lr": 0.008, "steps": 12, "seed": 100}


def symbols(generator):
    ids = torch.randint(0, 256, (8, 32), generator=generator)
    return {"input_ids": ids, "labels": ids}


@pytest.fixture
def family(monkeypatch):
    """The family of `JOB`, which learns random symbols: the tests have no text."""
    known = FAMILIES[JOB["family"]]
    monkeypatch.setitem(FAMILIES, JOB["family"], replace(known, task=replace(known.task, batch=symbols)))


def test_a_random_push_has_the_strengths_of_the_run_with_kss(family):
    row, doses = train(JOB, {"kss": {}})
    assert row["acted"] == len(doses) > 0
    other, repeated = train(JOB, {"kss": {"rule": RANDOM}}, doses)
    assert repeated == doses and other["losses"] != row["losses"]
    no_push, none = train(JOB, {"kss": {"rule": RANDOM}}, {}), train(JOB, {"kss": None})
    assert no_push[0]["losses"] == none[0]["losses"] and not no_push[1]


def noises_of(seed, monkeypatch):
    """What the rule draws for the states of a pass."""
    model = make(JOB["family"], None, seed)
    shaper, rule = shaper_of(model, {"rule": RANDOM}, seed, {0: dict.fromkeys(range(4), 1.0)})
    drawn, generate = [], torch.randn

    def draw(*args, **more):
        noise = generate(*args, **more)
        if more.get("generator") is rule.draw:
            drawn.append(noise)
        return noise

    with monkeypatch.context() as patch, shaper:
        patch.setattr(torch, "randn", draw)
        model(**symbols(torch.Generator().manual_seed(0))).loss.backward()
    return drawn


def test_the_direction_of_a_random_push_is_another_one_at_each_state_and_for_each_seed(monkeypatch):
    first, second = noises_of(100, monkeypatch), noises_of(101, monkeypatch)
    assert len(first) == len(second) == 8, "two states of each of four blocks"
    assert not any(torch.equal(one, other) for one, other in itertools.combinations([*first, *second], 2))


def test_section_why_compares_what_is_asked():
    base = {
        "exploded": None,
        "lost_by_gradient": None,
        "held_out": None,
        "schedule": "constant",
        "lr": 0.002,
        "steps": 7,
        "record": {},
    }
    losses = {
        ("llama", "clip"): 2.0, ("llama", "kss"): 1.9, ("llama", RANDOM): 1.95, ("llama", "clip, embedding norm"): 1.8,
        ("llama", "kss, embedding norm"): 1.79, ("llama, layernorm", "clip"): 2.0, ("llama, layernorm", "kss"): 2.03,
    }  # fmt: skip
    rows = [
        base | {"family": family, "arm": arm, "seed": seed, "loss": loss + 0.001 * seed, "kss": None, "record": {}}
        for (family, arm), loss in losses.items()
        for seed in (900, 901)
    ]
    lines = [line.strip("| ").split(" | ") for line in tables(rows, {}).splitlines() if line.count("|") == 5]
    found = {(family, title): value.split()[0] for family, _, title, value in lines}
    assert found["llama", "KSS"] == "-0.100"
    assert found["llama", "KSS minus a random push of the same size"] == "-0.050"
    assert found["llama", "KSS, minus KSS with embedding norm"] == "-0.090"
    assert found["llama", "KSS, minus KSS with LayerNorm (llama, layernorm)"] == "-0.130"
