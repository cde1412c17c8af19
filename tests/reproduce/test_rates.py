"""The picture of learning rates."""

import re
from xml.etree import ElementTree

import pytest

from scripts.reproduce.highest_rate.figure import picture
from scripts.reproduce.highest_rate.tables import arms_of, grid, highest
from scripts.reproduce.rates import Case, Rate, figure

SVG = "{http://www.w3.org/2000/svg}"


def drawn(cases, **more):
    made = figure("key", "A title", "", cases, ("ours", "theirs"), **more)
    return made, ElementTree.fromstring(made.document())


def test_equal_factors_are_equal_distances_and_the_bar_reaches_from_one_rate_to_the_other():
    _, tree = drawn([Case("a", [Rate(0.001), None], (0.001, 0.01)), Case("b", [Rate(0.01), Rate(0.1)])])
    ours = [float(each.get("cx")) for each in tree.iter(f"{SVG}circle") if each.get("class") == "near"][:2]
    theirs = next(float(each.get("cx")) for each in tree.iter(f"{SVG}circle") if each.get("class") == "dot")
    bar = next(each for each in tree.iter(f"{SVG}rect") if each.get("class") == "mid")
    assert ours[1] - ours[0] == pytest.approx(theirs - ours[1], abs=0.2)
    assert float(bar.get("x")) == ours[0] and float(bar.get("width")) == pytest.approx(ours[1] - ours[0], abs=0.2)


def test_intervals_of_one_case_do_not_lie_on_each_other():
    made, _ = drawn([Case("a", [Rate(0.002, 0.001, 0.004), Rate(0.003, 0.002, 0.004)])])
    heights = re.findall(r'd="M[\d.]+ ([\d.]+)H', made.body)
    assert len(heights) == 2 and heights[0] != heights[1]


def test_the_words_have_every_number():
    made, _ = drawn(
        [Case("a", [Rate(0.002), None], (0.001, 0.004)), Case("b", [None, None])], bar="between", limit=(0.1, "all")
    )
    assert made.alt == "a: ours 0.002, between 0.001 to 0.004; b: nothing"
    assert {"ours", "theirs", "between", "all"} <= set(re.findall(r">([\w ]+)</text>", made.body))


def test_every_task_has_a_line_with_clipping_and_one_without():
    between = {"recall": (0.00025, 0.016), "text-preln": (0.0005, 0.064)}
    rows = [row for row in grid() if row["task"] in between and row["arm"] in ("none", "clip", "paper + clip")]
    lines = picture(rows, {"between": between}).alt.split("; ")
    arms = arms_of(rows, {"between": between})
    for line, arm in zip(lines[:2], ("none", "clip"), strict=True):
        assert f"without KSS {highest(arms['recall', arm]).value:.2g}" in line
    assert [line.split(":")[0] for line in lines] == [
        f"{task}, {how} clipping" for task in between for how in ("without", "with")
    ]
    assert all("without KSS 0.0" in line for line in lines) and "our default" not in lines[1]
    assert "schedule of the paper 0.0" in lines[1] and "schedule of the paper" not in lines[0]
