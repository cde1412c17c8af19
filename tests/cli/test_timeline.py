"""``rksp timeline``: files and folders in, one page out, the usual exit codes."""

import json

from tests.browser.histories import broken, calm, log, write


def test_files_and_folders(rksp, tmp_path):
    file, folder = write(tmp_path / "a", calm("first")), write(tmp_path / "b", broken("second")).parent
    code, out, err = rksp("timeline", file, folder, "--out", "page.html")
    assert (code, out, err) == (0, "wrote page.html\n", "")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "first" in page and "second" in page


def test_default_page_and_json(rksp, tmp_path):
    write(tmp_path / "a", calm())
    code, out, _ = rksp("timeline", "a", "--json", "-")
    assert code == 0 and json.loads(out) == {"html": "rksp_timeline.html"}
    assert (tmp_path / "rksp_timeline.html").exists()


def test_help(rksp):
    code, out, _ = rksp("timeline", "--help")
    assert code == 0 and "example:\n  rksp timeline" in out and "exit codes:" in out


def test_bad_input_is_2_and_leaves_nothing(rksp, tmp_path):
    assert rksp("timeline")[0] == 2
    code, _, err = rksp("timeline", "missing", "--out", "page.html")
    assert code == 2 and "missing" in err
    (tmp_path / "a.jsonl").write_text("{}\n")
    code, _, err = rksp("timeline", "a.jsonl", "--out", "page.html")
    assert code == 2 and "a.jsonl, line 1" in err
    write(tmp_path / "a", [log(1, 2.0)])
    assert rksp("timeline", "a")[0] == 2
    write(tmp_path / "a", calm())
    assert rksp("timeline", *["a"] * 7)[0] == 2
    assert not list(tmp_path.glob("*.html"))


def test_a_page_that_cannot_be_written_is_1(rksp, tmp_path):
    write(tmp_path / "a", calm())
    code, _, err = rksp("timeline", "a", "--out", tmp_path)
    assert code == 1 and "is a folder" in err
