"""Sweeps become jobs, and what cannot be expanded or chosen is refused by name."""

import pytest

from scripts.reproduce.harness.config import section


def jobs(experiment, name="report"):
    return section(experiment.folder, name).jobs


def test_lists_are_swept_and_the_seed_varies_slowest(experiment):
    experiment.write(
        config="""
        report:
          seeds: [7, 3]
          sweep:
            - {a: [1, 2], b: [x, y]}
            - {a: 9, b: z}
        """
    )
    order = [(job["seed"], job["a"], job["b"]) for job in jobs(experiment)]
    one = [(1, "x"), (1, "y"), (2, "x"), (2, "y"), (9, "z")]
    assert order == [(seed, *pair) for seed in (7, 3) for pair in one]


def test_a_block_may_have_seeds_of_its_own(experiment):
    experiment.write(config="choose: {seeds: [100, 101], sweep: [{a: 1}, {a: 2, seed: 101}]}")
    assert [(job["a"], job["seed"]) for job in jobs(experiment, "choose")] == [(1, 100), (1, 101), (2, 101)]


def test_numbers_with_an_exponent_are_numbers(experiment):
    experiment.write(config="report: {seeds: 1, sweep: [{a: [1e-3, 2.5E4, 1e5x]}]}")
    assert [job["a"] for job in jobs(experiment)] == [0.001, 25000.0, "1e5x"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("report: {seeds: 2, sweep: [{a: 1}, {a: 1, b: 2}]}", "all blocks must have the same fields"),
        ("report: {seeds: 2, sweep: [{a: 1}, {a: [2, 1]}]}", "{'a': 1, 'seed': 0} is listed twice"),
        ("report: {sweep: [{a: 1}]}", "has no seed"),
        ("report: {seeds: 2, sweep: [{a: {x: 1}}]}", "name it under `settings`"),
        ("report: {seeds: 2, jobs: [{a: 1}]}", "needs `sweep`"),
        ("choose: {seeds: 2, sweep: [{a: 1}]}", "--section report: "),
        ("report: [", "not YAML"),
    ],
)
def test_a_config_that_cannot_be_expanded_is_refused(experiment, capsys, config, says):
    experiment.write(config=config)
    assert experiment() == 2
    assert says in capsys.readouterr().err and not experiment.results.exists()


def test_only_and_seeds_choose_jobs(experiment, capsys):
    assert experiment("--only", "kind=plain", "lr=0.001", "--seeds", "2") == 0
    assert [(row["kind"], row["lr"], row["seed"]) for row in experiment.rows()] == [
        ("plain", 0.001, 0),
        ("plain", 0.001, 1),
    ]
    assert not experiment.page.exists()  # ten jobs of the section are left
    assert experiment("--only", "lr=1e-3", "--only", "kind=plain", "kind=other") == 0
    assert len(experiment.rows()) == 6 and {row["lr"] for row in experiment.rows()} == {0.001}
    capsys.readouterr()
    experiment("--table", "--only", "kind=other", "seed=2", "lr=0.001")
    assert capsys.readouterr().out == "2 other 0.001 2.003\n"
    experiment("--status")
    assert "6 of 12 jobs done, 0 failed, 6 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--only", "kind=odd"), "choose among plain, other"),
        (("--only", "color=red"), "the fields are kind, lr, seed"),
        (("--only", "kind"), "write FIELD=VALUE"),
        (("--seeds", "4"), "has 3 for 'report'"),
        (("--section", "choose"), "has report"),
        (("--table",), "no rows of these jobs yet"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(experiment, capsys, options, says):
    assert experiment(*options) == 2
    assert says in capsys.readouterr().err and not experiment.results.exists()


def test_what_check_refuses_is_said_before_any_job(experiment, capsys):
    experiment.write(
        code=(experiment.folder / "experiment.py").read_text()
        + "\ndef check(jobs, settings):\n    raise ValueError('DATA is not set')\n"
    )
    assert experiment() == 2
    assert "DATA is not set" in capsys.readouterr().err and not experiment.results.exists()


def test_rows_whose_job_left_the_config_are_counted_and_stay_out_of_the_tables(experiment, capsys):
    experiment()
    experiment.write(config="settings: {factor: 3}\nreport: {seeds: 3, sweep: [{kind: plain, lr: [1e-3, 0.5]}]}")
    capsys.readouterr()
    assert experiment() == 0
    assert "6 rows are of jobs that are not among these" in capsys.readouterr().out
    assert "other" not in experiment.page.read_text() and len(experiment.rows()) == 12


def test_the_time_left_is_that_of_the_same_job_with_other_seeds(experiment, capsys):
    experiment.write(config="report: {seeds: 3, sweep: [{kind: [short, long]}]}")
    rows = [("short", 0, 36), ("long", 0, 3600), ("short", 1, 108)]
    experiment.results.write_text(
        "".join(f'{{"kind": "{kind}", "seed": {seed}, "seconds": {seconds}}}\n' for kind, seed, seconds in rows)
    )
    experiment("--status")
    assert "1.04 spent, about 2.02 left" in capsys.readouterr().out  # two long ones, and a short one of 72 s
