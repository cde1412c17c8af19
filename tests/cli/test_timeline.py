"""``rksp timeline``: files and folders in, one page out, the usual exit codes."""

import json
import os

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


def test_says_which_of_several_histories_it_draws(rksp, tmp_path):
    first = write(tmp_path / "a", calm("first"))
    first.with_name("rksp_history_2.jsonl").write_text(write(tmp_path / "b", calm("second")).read_text())
    os.utime(first, (1e9, 1e9))
    code, _, err = rksp("timeline", tmp_path / "a", "--out", "page.html")
    assert code == 0 and "2 histories" in err and "rksp_history_2.jsonl" in err
    assert "second" in (tmp_path / "page.html").read_text("utf-8")


def test_json_into_a_pipe_and_through_a_link(rksp, tmp_path):
    """As root, a device of the system would else be replaced by a file."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert rksp("env", "--json", tmp_path / "pipe")[0] == 0
        assert "versions" in json.loads(os.read(reader, 60_000))
        assert (tmp_path / "pipe").is_fifo()
    finally:
        os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "there.json")
    assert rksp("env", "--json", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink() and "versions" in json.loads((tmp_path / "there.json").read_text())


def test_report_takes_a_history_too(rksp, tmp_path):
    file = write(tmp_path / "a", calm())
    code, out, _ = rksp("report", file, "--out", tmp_path / "site")
    assert code == 0 and out.strip() == f"wrote {tmp_path / 'site' / 'rksp_report.html'}"
    rksp("timeline", file, "--out", "page.html")
    assert (tmp_path / "site" / "rksp_report.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert rksp("report", tmp_path / "missing.jsonl")[0] == 2
