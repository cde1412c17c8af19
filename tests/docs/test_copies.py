"""What the documents copy from elsewhere is the same there: settings, floors, results of benchmarks."""

import importlib.util
import json
import re
import statistics

import pytest

from tests.docs.common import DOCUMENTS, ROOT, fenced
from tests.unit.test_imports import ORDER

KSS = "scripts/reproduce/kss_default/README.md"


def test_tables_of_settings_are_those_of_the_configs():
    path = ROOT / "scripts/settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text("utf-8")
    assert "`kss_weight`" in page
    assert script.written(page) == page, "run: python scripts/settings_table.py"
    assert script.written(page.replace("| `kss_seed` |", "| `kss_sead` |")) == page  # a wrong table would be seen


def test_floors_are_drawn_in_the_order_of_the_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawn = [part for row in re.findall(r"^    \| (.*?) *\|", text, re.MULTILINE) for part in row.split()]
    assert drawn == ORDER[::-1]


def test_blocks_of_results_are_copied_from_their_file():
    copied = [block for path in DOCUMENTS for block in fenced(path.read_text("utf-8"), "text")]
    assert len(copied) >= 3
    for file, block in copied:
        lines = (ROOT / file).read_text("utf-8").splitlines()
        assert [line for line in block.splitlines() if line not in lines] == [], f"copy it from {file} again"


def test_what_is_said_of_the_cost_of_kss_follows_from_the_runs():
    rows = json.loads((ROOT / "scripts/bench/training.json").read_text("utf-8"))["rows"]
    added = {(row["d"], row["layers"], row["tokens"]): row["KSS, default, paired"]["overhead"] for row in rows}
    wide = [share for (width, *_), share in added.items() if width >= 512]
    assert len(wide) == 4
    median, low, high = (f"{value:.1%}" for value in (statistics.median(wide), min(wide), max(wide)))
    narrow = [f"{share:.0%}" for (width, *_), share in sorted(added.items(), reverse=True) if width < 512]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"{low} to {high} of a step from width 512 on, {narrow[0]} and {narrow[1]} at 256 and 128" in readme
    assert f"adds {low} to {high} to a step, median {median}" in (ROOT / "docs/cost.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("document", "words", "source", "there"),
    [
        (
            "README.md",
            "in 4 of 42 randomly initialised",
            "zoo_reports/README.md",
            "in 4 of 42 models with random weights",
        ),
        (
            "docs/zoo.md",
            "only 4 of 42 randomly initialised",
            "zoo_reports/README.md",
            "in 4 of 42 models with random weights",
        ),
        ("docs/zoo.md", "In two of six small models", "zoo_reports/README.md", "2 of 6 models trained here"),
        (
            "README.md",
            "4 of 19 agree with ours",
            "zoo_reports/README.md",
            "4 of the paper's 19 comparable values agree",
        ),
        ("docs/architecture.md", "709 of the 804", "zoo_reports/support.md", "| works | 650 |"),
        ("docs/architecture.md", "709 of the 804", "zoo_reports/support.md", "| works with a note | 59 |"),
        ("docs/architecture.md", "709 of the 804", "zoo_reports/support.md", "transformers, 804 in all"),
        (
            "README.md",
            "recall without a norm 4 with clipping, 0 with KSS too",
            KSS,
            "| recall, no norm | 3, 6, 13, 23 | 2, 2, 4, 4 | 0, 0, 0, 0 | 5, 3, 8, 10 |",
        ),
        (
            "README.md",
            "text with Pre-LN 1 and 0; text with RMSNorm 24 and 3",
            KSS,
            "| text, Pre-LN | 4, 10, 10, 13 | 0, 0, 0, 1 | 0, 0, 0, 0 | 0, 1, 3, 13 |",
        ),
        (
            "README.md",
            "loses 10, 13, 24",
            KSS,
            "| text, RMSNorm | 0, 16, 23, 24 | 0, 1, 17, 24 | 0, 0, 0, 3 | 0, 3, 21, 24 |",
        ),
        ("docs/training.md", "+0.011 [0.006, 0.015]", KSS, "+0.011 [0.006, 0.015]"),
        (
            "README.md",
            "the factors are .67, .63 and .92. Our default with clipping: 2.2, 1.8 and 1.5 times",
            "scripts/reproduce/highest_rate/README.md",
            "2.18 [1.78, 2.83] (recall), 1.83 [1.41, 2.59] (Pre-LN), 1.54 [1.37, 1.68] (RMSNorm)",
        ),
        (
            "scripts/reproduce/highest_rate/README.md",
            "2.18 [1.78, 2.83] (recall)",
            "scripts/reproduce/highest_rate/results.md",
            "| recall | kss + clip | 24 | 0.0044 [0.0038, 0.0049] | 2.18 [1.78, 2.83] |",
        ),
        (
            "docs/numbers.md",
            "from 3,970 to 67",
            "scripts/reproduce/paper_setting/README.md",
            "| ours | .246 | 3,970 | .222 |",
        ),
        (
            "docs/numbers.md",
            "up to 75% higher",
            "scripts/reproduce/tokens/README.md",
            "by up to 75% between 2,048 and 8,192",
        ),
    ],
)
def test_a_number_is_the_one_of_its_source(document, words, source, there):
    for file, text in ((document, words), (source, there)):
        assert text in " ".join((ROOT / file).read_text("utf-8").split()), (
            f"{document}: {words!r} rests on {source}: {there!r}"
        )
