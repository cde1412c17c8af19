"""Files appear all or not at all, and a failure says what to do and where the numbers are."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_rksp import files as module
from hf_rksp.errors import InputError, OutputError, SchemaError
from hf_rksp.report import audit_to_dict, check_writable, read_report, render_html, write_report
from tests.browser.samples import HOSTILE, audit, report


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_all_formats(tmp_path):
    paths = write_report(audit(), tmp_path / "a" / "b")
    assert list(paths) == ["json", "md", "html"]
    assert all(path.is_file() for path in paths.values())
    figures = {name for name in tree(tmp_path / "a" / "b") if name.startswith("figures/")}
    assert figures == {f"figures/{name}" for name in re.findall(r"\(figures/(\S+?)\)", paths["md"].read_text("utf-8"))}
    assert not [name for name in tree(tmp_path) if "partial" in name]
    again = read_report(paths["json"])
    assert audit_to_dict(again) == audit_to_dict(read_report(tmp_path / "a" / "b")) == audit_to_dict(audit())


def test_some_formats_and_other_files_stay(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert list(write_report(report(), tmp_path / "out", ("html",))) == ["html"]
    assert set(tree(tmp_path / "out")) == {"notes.txt", "report.html"}
    assert write_report(report(), tmp_path / "out", "json") == {"json": tmp_path / "out" / "report.json"}


def test_command_is_recorded_only_where_none_is(tmp_path):
    data = report()
    write_report(data, tmp_path, ("json",), command="other")
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["profile"]["setup"]["command"].startswith(
        "rksp audit"
    )
    del data["profile"]["setup"]["command"]
    write_report(data, tmp_path, ("json",), command="other")
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["profile"]["setup"]["command"] == "other"
    assert "command" not in data["profile"]["setup"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="'pdf' is none of json, md, html"):
        write_report(report(), tmp_path, ("html", "pdf"))
    with pytest.raises(SchemaError, match="schema_version=3"):
        write_report(report() | {"schema_version": 3}, tmp_path, ("json",))
    with pytest.raises(InputError, match="not plain JSON"):
        write_report(report() | {"verdict": {"x": float("nan")}}, tmp_path)
    assert not list(tmp_path.glob("report*"))


def test_names_that_are_no_unicode(tmp_path):
    data = report()
    data["profile"]["model"]["name"] = "a\ud800b" + HOSTILE
    write_report(data, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["profile"]["model"]["name"] == "a\ud800b" + HOSTILE


def test_read_report_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_report(tmp_path / "none.json")
    (tmp_path / "report.json").write_text('{"schema_version": 1, ')
    with pytest.raises(SchemaError, match="not JSON"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SchemaError, match="not JSON"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(SchemaError, match="not an hf_rksp report"):
        read_report(tmp_path)


def test_folder_below_a_file(tmp_path, own_temporary_folder):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "bad\0name"):
        with pytest.raises(OutputError) as failure:
            check_writable(folder)
        assert f"folder={str(folder)!r}" in str(failure.value) and "pass a folder" in str(failure.value)
    with pytest.raises(OutputError, match="Nothing is lost: the numbers are in ") as failure:
        write_report(report(), tmp_path / "file" / "below")
    saved = Path(str(failure.value).rpartition(" ")[2])
    assert saved.parent == own_temporary_folder
    assert json.loads(saved.read_text("utf-8")) == report()


def test_check_writable_leaves_nothing(tmp_path):
    assert check_writable(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_in_the_place_of_a_file(tmp_path):
    """The last move fails: what was moved before is taken back."""
    out = tmp_path / "out"
    (out / "report.json").mkdir(parents=True)
    (out / "report.html").write_text("old")
    with pytest.raises(OutputError, match="the numbers are in"):
        write_report(report(), out)
    assert tree(out) == {"report.html": b"old"} and (out / "report.json").is_dir() and not (out / "figures").exists()


FULL = """
import json, resource, sys, tempfile
from hf_rksp.errors import OutputError
from hf_rksp.report import write_report
data = json.load(open(sys.argv[1]))
tempfile.tempdir = sys.argv[3]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    write_report(data, sys.argv[2])
except OutputError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("room", ["json fits", "nothing fits"])
def test_disk_full(tmp_path, own_temporary_folder, room):
    pytest.importorskip("resource")
    out = tmp_path / "out"
    data = report()
    write_report(data, out, ("json",))
    before = tree(out)
    assert len(render_html(data)) > len(before["report.json"]) + 1000, "the limit must stop the page, not the numbers"
    limit = len(before["report.json"]) + 1000 if room == "json fits" else 2000
    (tmp_path / "in.json").write_text(json.dumps(data))
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "in.json", out, own_temporary_folder, str(limit)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"folder={str(out)!r}" in done.stderr and "a disk with room" in done.stderr
    assert tree(out) == before and {path.name for path in out.iterdir()} == {"report.json"}
    saved = list(own_temporary_folder.iterdir())
    if room == "json fits":
        assert json.loads(saved[0].read_text("utf-8")) == data and str(saved[0]) in done.stderr
    else:
        assert saved == [] and "could not be saved" in done.stderr


@pytest.mark.parametrize("moves", range(0, 9, 2))
def test_interrupt_leaves_the_folder_as_it_was(tmp_path, monkeypatch, moves):
    out = tmp_path / "out"
    write_report(report(), out, ("md",))
    (out / "figures" / "masses.svg").unlink()
    before = tree(out)
    replace, done = os.replace, []

    def interrupted(source, target):
        if str(source).endswith(".new"):
            done.append(target)
            if len(done) > moves:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", interrupted)
    data = report()
    data["profile"]["model"]["name"] = "another"
    with pytest.raises(KeyboardInterrupt):
        write_report(data, out)
    assert tree(out) == before
    assert not list(out.glob(".rksp-*"))


def test_interrupt_while_writing(tmp_path, monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(report(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
