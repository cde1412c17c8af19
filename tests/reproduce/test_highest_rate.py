"""Bisection, and the learning rate at which a fifth is lost: Table 5."""

import numpy as np
import pytest
from scipy import stats

from scripts.reproduce.highest_rate.experiment import bisected
from scripts.reproduce.highest_rate.tables import arms_of, cases, grid, highest, likelihoods, ratio, table_of, verdict

BETWEEN = (0.001, 0.064)
SETTINGS = {"between": {"recall": BETWEEN}, "until": 1.1}
ENDED = {"lost_by_loss": None, "lost_by_gradient": None, "loss": 1.0, "largest_gradient_norm": 1.0, "skipped": 0}


def rows_of(middle, width, seeds, arm="clip"):
    """Bisections of runs that are lost with the probability of a normal distribution of log(learning rate)."""
    rows = []
    for seed in range(seeds):
        draw, probes = np.random.default_rng(seed), []

        def fails(lr, draw=draw, probes=probes):
            lost = bool(draw.normal(np.log(middle), width) < np.log(lr))
            probes.append({"lr": lr, "lost": lost} | ENDED | ({"lost_by_loss": 7} if lost else {}))
            return lost

        bisected(fails, *BETWEEN, 1.1)
        rows.append({"task": "recall", "arm": arm, "seed": seed, "probes": probes})
    return rows


def test_a_bracket_that_never_fails_ends_at_the_upper_end():
    low, high = bisected(lambda lr: False, 0.001, 0.016, 1.1)
    assert high == 0.016 and low < high <= 1.1 * low


def test_each_probe_halves_the_bracket():
    seen = []
    bisected(lambda lr: seen.append(lr) or lr > 0.005, 0.001, 0.016, 1.1)
    assert len(seen) == 5  # 16 = 1.1 ** 29, and 2 ** 5 > 29


@pytest.mark.parametrize("width", [0.1, 0.4])
def test_the_rate_at_which_a_fifth_is_lost_is_found(width):
    """Also if runs are kept above a learning rate at which others were lost: the quantile of the ends of the brackets is not."""
    wanted = 0.008 * np.exp(width * stats.norm.ppf(0.2))
    found = highest(likelihoods(rows_of(0.008, width, 200), BETWEEN))
    assert found.value == pytest.approx(wanted, rel=0.08) and found.low < wanted < found.high


def test_an_arm_that_bears_twice_the_rate_has_a_ratio_of_two():
    arms = [likelihoods(rows_of(middle, 0.2, 200), BETWEEN) for middle in (0.008, 0.004)]
    found = ratio(*arms)
    assert found.value == pytest.approx(2, rel=0.1) and found.low < 2 < found.high
    assert ratio(arms[0], likelihoods([], BETWEEN)) is None


def judged(rows):
    return verdict(cases(arms_of(rows, SETTINGS), SETTINGS), SETTINGS)


def test_the_table_counts_what_is_lost_and_the_verdict_needs_every_arm():
    rows = rows_of(0.004, 0.1, 6) + rows_of(0.012, 0.1, 6, "paper + clip")
    lines = [line.split(" | ") for line in table_of(rows, SETTINGS).splitlines()[2:]]
    lost = sum(probe["lost"] for row in rows[:6] for probe in row["probes"])
    assert lines[0][5:7] == [f"{lost} of 36", str(lost)] and lines[0][4] == "-"
    assert float(lines[1][4].split()[0]) == pytest.approx(3, rel=0.1)
    assert judged(rows) is None
    more = rows_of(0.004, 0.1, 6, "none") + rows_of(0.004, 0.1, 6, "paper")
    assert judged(rows + more) == "partly"
    assert table_of(rows + more, SETTINGS).endswith("Table 5 by the rule of README.md: partly.\n")
    assert judged(rows + rows_of(0.004, 0.1, 6, "none") + rows_of(0.016, 0.1, 6, "paper")) == "held"


def test_a_seed_may_have_rows_of_two_experiments():
    rows = rows_of(0.008, 0.2, 6)
    halves = [row | {"probes": row["probes"][part]} for row in rows for part in (slice(3), slice(3, None))]
    whole, split = (highest(likelihoods(each, BETWEEN)) for each in (rows, halves))
    assert whole == pytest.approx(split)


def test_an_end_beyond_the_grid_is_not_given_as_a_number():
    kept = rows_of(10.0, 0.1, 6)
    assert table_of(kept, SETTINGS).splitlines()[2].split(" | ")[3].endswith(", -]")


def test_the_other_experiment_has_probes_of_every_arm_but_that_of_the_paper_without_clipping():
    found = {(row["task"], row["arm"]) for row in grid()}
    assert {("recall", arm) for arm in ("none", "clip", "paper + clip", "kss + clip")} <= found
    assert not any(arm == "paper" for _, arm in found)
