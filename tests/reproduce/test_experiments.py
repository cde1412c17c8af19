"""The experiments of scripts/reproduce: their tables are those of their rows; a new one runs."""

import re
from pathlib import Path

import pytest

from scripts.reproduce.harness.cli import ROOT, SKELETON, main
from scripts.reproduce.harness.config import section, sections

EXPERIMENTS = sorted(file.parent for file in ROOT.glob("*/config.yaml"))
HEADINGS = ["Question", "What came out", "Set-up", "How to run", "Limits"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [(folder, name) for folder in EXPERIMENTS for name in sections(folder)],
    ids=lambda part: getattr(part, "name", part),
)
def test_the_tables_are_those_of_the_rows(folder, name, capsys):
    if not section(folder, name).results.exists():  # not begun
        assert not section(folder, name).page.exists()
        return
    assert main([folder.name, "--section", name, "--table"]) == 0
    assert capsys.readouterr().out.encode() == section(folder, name).page.read_bytes()


@pytest.mark.parametrize("folder", [*EXPERIMENTS, SKELETON], ids=lambda folder: folder.name)
def test_readmes_have_the_fixed_headings_and_name_commands_that_there_are(folder):
    text = (folder / "README.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
    commands = re.findall(r"python -m scripts\.reproduce (\S+)", text)
    assert commands and set(commands) <= {folder.name, "NAME"}


def test_a_new_experiment_runs_as_it_stands(tmp_path, capsys):
    assert main(["new", "first_try", "--root", str(tmp_path)]) == 0
    assert main(["first_try", "--root", str(tmp_path), "--workers", "1"]) == 0
    folder = tmp_path / "first_try"
    page = (folder / "results.md").read_text()
    assert re.search(r"^\| 100 \| 0\.\d{3} \[", page, re.M), page
    assert "python -m scripts.reproduce first_try" in (folder / "README.md").read_text()
    capsys.readouterr()
    assert main(["--root", str(tmp_path)]) == 0
    assert re.search(r"first_try +report +10 of 10 jobs done", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "says"), [("taken", "is there already"), ("Two words", "small letters"), ("new", "small letters")]
)
def test_a_name_that_cannot_be_used_is_refused(tmp_path, capsys, name, says):
    (tmp_path / "taken").mkdir()
    assert main(["new", name, "--root", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"] and not list((tmp_path / "taken").iterdir())


def test_an_experiment_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["nothing"]) == 2
    assert all(folder.name in capsys.readouterr().err for folder in EXPERIMENTS[:1])


def test_the_harness_is_no_experiment():
    assert Path(ROOT, "harness") not in EXPERIMENTS and len(EXPERIMENTS) >= 3
