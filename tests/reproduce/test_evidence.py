"""The page of the claims is made from the rows; all experiments stand in one order."""

import math
import re

import pytest

from hf_rksp.cli.main import build_parser
from scripts.reproduce import all as everything
from scripts.reproduce.evidence.claim import ROOT
from scripts.reproduce.evidence.page import VERDICTS, judge, links
from scripts.reproduce.harness.cli import ROOT as EXPERIMENTS
from scripts.reproduce.harness.config import ExperimentError, section
from scripts.reproduce.harness.progress import progress
from scripts.reproduce.render import FOLDER, OURS, PAPERS, files

CLAIMS = [claim for paper in (*PAPERS, OURS) for claim in paper.claims]


def test_the_page_is_that_of_the_rows():
    for name, content in files().items():
        assert (FOLDER / name).read_bytes() == content, f"{name}: python scripts/reproduce/render.py"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says[:40])
def test_a_claim_names_rows_and_a_command_that_there_are(claim):
    assert (claim.judge is None) == (not claim.rows)
    assert claim.has_rows or claim.finding().verdict == "not tested"
    if match := re.match(r"python -m scripts\.reproduce (\w+)(?: --section (\w+))?", claim.command):
        assert section(EXPERIMENTS / match[1], match[2] or "report").results == ROOT / claim.rows[0]
    elif claim.rows:
        files_in = re.findall(r"\S+\.py", claim.command)
        assert all((ROOT / file).is_file() for file in files_in) and (files_in or claim.command.startswith("rksp "))
        if claim.command.startswith("rksp "):
            build_parser().parse_args(claim.command.split()[1:])


def test_every_verdict_has_its_numbers():
    for _, claims in judge((*PAPERS, OURS)):
        for claim, finding in claims:
            assert finding.verdict in VERDICTS and (
                claim.judge is None or not claim.has_rows or re.search(r"\d", finding.text) or "test" in claim.command
            )
    assert links(("a/b/c.jsonl",)) == "[b/c.jsonl](../../a/b/c.jsonl)"


def write(folder, text, rows=()):
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    (folder / "results.jsonl").write_text("".join(f'{{"x": {x}, "seed": 0, "seconds": {s}}}\n' for x, s in rows))


def test_what_says_most_per_hour_comes_first(tmp_path):
    sweep = "sweep: [{x: [1, 2, 3, 4], seed: 0}]"
    write(tmp_path / "done", f"report: {{{sweep}}}", [(x, 3600) for x in (1, 2, 3, 4)])
    write(tmp_path / "slow", f"report: {{{sweep}}}", [(1, 7200)])
    write(tmp_path / "fast", f"report: {{{sweep}}}", [(1, 3600)])
    write(tmp_path / "many", f"report: {{claims: 4, {sweep}}}", [(1, 7200)])
    write(tmp_path / "new", f"report: {{{sweep}}}")
    write(tmp_path / "spent", f"report: {{hours: 1, {sweep}}}", [(1, 3600)])
    found = everything.states(tmp_path)
    assert [state.section.folder.name for state in found][:4] == ["many", "fast", "slow", "new"]
    assert everything.rate(found[0]) == pytest.approx(4 * math.log2(4) / 2 / 6)
    text = everything.status(found)
    assert "| spent | 1 of 4 | 1.00 of 1 | 3.00 | budget spent |" in text and "| done | 4 of 4 | 4.00 | 0 | - |" in text
    assert progress(section(tmp_path / "slow")).information_left() == pytest.approx(1.0)


def test_claims_and_hours_are_numbers(tmp_path):
    write(tmp_path / "wrong", "report: {claims: many, sweep: [{x: 1, seed: 0}]}")
    with pytest.raises(ExperimentError, match="claims, hours and workers are numbers above 0"):
        section(tmp_path / "wrong")
