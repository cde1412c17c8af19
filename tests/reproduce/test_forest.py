"""Forest plots."""

import re
from xml.etree import ElementTree

import pytest

from scripts.reproduce.forest import Case, Value, figure
from scripts.reproduce.highest_rate.figure import picture
from scripts.reproduce.highest_rate.tables import arms_of, grid, highest

SVG = "{http://www.w3.org/2000/svg}"


def drawn(cases, **more):
    made = figure("key", "A title", "", cases, ("ours", "theirs"), "learning rate", log=True, **more)
    return made, ElementTree.fromstring(made.document())


def test_equal_factors_are_equal_distances_and_the_bar_reaches_from_one_rate_to_the_other():
    _, tree = drawn([Case("a", [Value(0.001), None], (0.001, 0.01)), Case("b", [Value(0.01), Value(0.1)])])
    ours = [float(each.get("cx")) for each in tree.iter(f"{SVG}circle") if each.get("class") == "near"][:2]
    theirs = next(float(each.get("cx")) for each in tree.iter(f"{SVG}circle") if each.get("class") == "dot")
    bar = next(each for each in tree.iter(f"{SVG}rect") if each.get("class") == "mid")
    assert ours[1] - ours[0] == pytest.approx(theirs - ours[1], abs=0.2)
    assert float(bar.get("x")) == ours[0] and float(bar.get("width")) == pytest.approx(ours[1] - ours[0], abs=0.2)


def test_intervals_of_one_case_do_not_lie_on_each_other():
    made, _ = drawn([Case("a", [Value(0.002, 0.001, 0.004), Value(0.003, 0.002, 0.004)])])
    heights = re.findall(r'd="M[\d.]+ ([\d.]+)H', made.body)
    assert len(heights) == 2 and heights[0] != heights[1]


def test_without_log_equal_differences_are_equal_distances_and_zero_is_a_value():
    made = figure("key", "A title", "", [Case("a", [Value(each)]) for each in (-0.2, 0.0, 0.2)], ("ours",), "loss")
    tree = ElementTree.fromstring(made.document())
    x = [float(each.get("cx")) for each in tree.iter(f"{SVG}circle") if each.get("class") == "near"][:3]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[1] > x[0]


def test_a_note_and_the_caption_are_drawn():
    made = figure("key", "A title", "What to know", [Case("a", [Value(1.0)], note="3 lost")], ("ours",), "loss")
    assert {"3 lost", "What to know"} <= set(
        re.findall(r">([\w ]+)</text>", made.body)
    ) and made.alt == "a: ours 1, 3 lost"


def test_the_words_have_every_number():
    made, _ = drawn(
        [Case("a", [Value(0.002), None], (0.001, 0.004)), Case("b", [None, None])], bar="between", limit=(0.1, "all")
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
