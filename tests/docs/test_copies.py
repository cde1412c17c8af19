"""What the documents copy from elsewhere is the same there: settings, floors, results of benchmarks."""

import importlib.util
import re
import statistics

from tests.docs.common import DOCUMENTS, ROOT, fenced
from tests.unit.test_imports import ORDER

#: d, layers and tokens of a step, its time, and what KSS adds.
_STEP = re.compile(r"^ +(\d+) +\d+ +\d+ +\d+ ms +([+-][\d.]+)%", re.MULTILINE)


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
    runs = [(ROOT / "scripts/bench" / file).read_text("utf-8") for file in ("training.txt", "training_runs.txt")]
    added = [float(percent) for run in runs for width, percent in _STEP.findall(run) if int(width) >= 512]
    assert len(added) == 12
    median, low, high = (f"{value:.1f}%" for value in (statistics.median(added), min(added), max(added)))
    assert f"median {median} of a step from width 512 on, {low} to {high}" in (ROOT / "README.md").read_text("utf-8")
    assert f"adds {low} to {high} to a step, median {median}" in (ROOT / "docs/cost.md").read_text("utf-8")
