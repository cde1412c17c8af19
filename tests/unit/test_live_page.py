"""The page of a run that goes on: the same bytes as the static one, read by offset, served to this machine alone."""

import gc
import http.client
import json
import os
import threading
import time

import pytest

from hf_rksp.cli.main import main
from hf_rksp.errors import InputError
from hf_rksp.history.tail import Tail
from hf_rksp.report import read_history, render_timeline
from hf_rksp.report.run.live import LivePage
from hf_rksp.report.run.server import LiveServer
from tests.browser.histories import calm, eventful, log


def append(file, rows):
    with file.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def static(*files):
    return render_timeline([read_history(file) for file in files]).encode()


@pytest.mark.parametrize("make", [calm, lambda: eventful()[:120]])
@pytest.mark.parametrize("step", [1, 13])
def test_after_every_line_it_is_the_static_page(tmp_path, make, step):
    file, rows = tmp_path / "rksp_history.jsonl", make()
    live = LivePage([tmp_path])
    assert live.html() is None and not live.state()["runs"][0]["begun"]
    for start in range(0, len(rows), step):
        append(file, rows[start : start + step])
        assert live.html() == static(file)
    version = live.state()["version"]
    assert live.state()["version"] == version and live.html() is live.html(), "nothing new, nothing rendered"


def test_half_a_line_waits(tmp_path):
    file = tmp_path / "rksp_history.jsonl"
    append(file, calm()[:5])
    live = LivePage([file])
    before = live.html()
    with file.open("a") as stream:
        stream.write('{"kind": "log", "ste')
    assert live.html() == before
    with file.open("a") as stream:
        stream.write('p": 19, "loss": 1.5}\n')
    assert live.html() == static(file) != before


def test_two_runs_and_one_that_begins_later(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    append(one / "rksp_history.jsonl", calm("one"))
    live = LivePage([one, other])
    assert live.html() == static(one)
    append(other / "rksp_history.jsonl", calm("other"))
    assert live.html() == static(one, other)
    assert [run["step"] for run in live.state()["runs"]] == [20, 20]


def test_a_later_history_of_the_folder_takes_over(tmp_path):
    append(tmp_path / "rksp_history.jsonl", calm("first"))
    live = LivePage([tmp_path])
    live.html()
    time.sleep(0.02)
    append(tmp_path / "rksp_history_2.jsonl", calm("second"))
    assert live.html() == static(tmp_path / "rksp_history_2.jsonl")


def test_a_broken_line_is_named_and_other_runs_go_on(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    append(one / "rksp_history.jsonl", calm("one"))
    append(other / "rksp_history.jsonl", calm("other")[:5])
    live = LivePage([one, other])
    live.html()
    with (other / "rksp_history.jsonl").open("a") as stream:
        stream.write("[]\n")
    assert live.html() == static(one)
    state = live.state()
    assert state["runs"][0]["error"] == "" and "line 6" in state["runs"][1]["error"]
    assert live.state()["version"] == state["version"], "it is not read again and again"
    (other / "rksp_history.jsonl").unlink()
    append(other / "rksp_history.jsonl", calm("other"))
    assert live.html() == static(one, other) and live.state()["runs"][1]["error"] == ""


@pytest.mark.parametrize("longer", [0, 3])
def test_a_history_that_is_replaced_is_read_anew(tmp_path, longer):
    """In place too, with lines as long as before."""
    file = tmp_path / "rksp_history.jsonl"
    append(file, [calm()[0], log(1, 1.5), log(2, 1.5)])
    live = LivePage([tmp_path])
    live.html()
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in [calm()[0], *(log(at, 9.5) for at in range(1, 3 + longer))])
    )
    assert live.html() == static(file)


def test_a_history_that_ends_as_it_did_is_read_anew_if_it_begins_otherwise(tmp_path):
    file, rows = tmp_path / "rksp_history.jsonl", [calm()[0], *(log(step, 1.5) for step in range(1, 9))]
    append(file, rows)
    live = LivePage([file])
    live.html()
    rows[1] = log(1, 9.5)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    append(file, [log(9, 1.5)])
    assert live.html() == static(file)


def test_a_file_that_is_touched_does_not_take_over(tmp_path):
    one, other = tmp_path / "rksp_history.jsonl", tmp_path / "rksp_history_2.jsonl"
    append(one, calm("first"))
    append(other, calm("second"))
    os.utime(one, (1, 1))
    live = LivePage([tmp_path])
    assert live.html() == static(other)
    one.touch()
    append(one, [log(30, 1.0)])
    assert live.html() == static(other)


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    append(tmp_path / "rksp_history.jsonl", calm())
    live = LivePage([tmp_path])
    live.html()
    monkeypatch.setattr(Tail, "poll", lambda tail: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert "Permission denied" in live.state()["runs"][0]["error"]


def test_a_page_rests_after_a_long_rendering(tmp_path, monkeypatch):
    file = tmp_path / "rksp_history.jsonl"
    append(file, calm()[:5])
    live = LivePage([file])
    live.html()
    live._ready = time.monotonic() + 100
    before = live.state()["version"]
    append(file, calm()[5:])
    assert live.state()["version"] == before, "not yet worth while"
    live._ready = 0.0
    assert live.state()["version"] > before


def test_numbers_that_fit_no_axis_are_no_numbers(tmp_path):
    file = tmp_path / "rksp_history.jsonl"
    append(file, [calm()[0], log(1, 1.0), log(2, 1e308), log(3, -1e308), log(4, 1.0)])
    assert b"not a finite number" in LivePage([file]).html()


def test_what_can_be_no_run_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    for paths, words in (
        ([tmp_path / "report.json"], "rksp_history.jsonl"),
        ([tmp_path / "typo"], "pass the output_dir"),
        ([tmp_path / "a/b/c.jsonl"], "no such folder"),
        ([tmp_path] * 7, "7 runs"),
    ):
        with pytest.raises(InputError, match=words):
            LivePage(paths)


def timed(call):
    """Processor seconds of a call, and what it returns; a collection of what other tests left behind does not count."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        returned = call()
        return time.process_time() - start, returned
    finally:
        gc.enable()


@pytest.mark.parametrize(("steps", "every", "layers"), [(100_000, 20_000, 3), (10_000, 10, 24)])
def test_a_refresh_of_a_long_run_reads_and_renders_what_is_new(tmp_path, steps, every, layers):
    """100,000 logged steps, and 1,000 readings of 24 layers: a refresh beside the first rendering, and the size of the page."""
    file, rows = tmp_path / "rksp_history.jsonl", calm(steps=steps, every=every, layers=layers)
    for row in rows:
        for layer in row.get("layers", ()):
            del layer["eigenvalues"]
    append(file, rows[:-10])
    live = LivePage([file])
    first, _ = timed(live.html)
    append(file, rows[-10:])
    again, page = timed(live.html)
    assert again < 0.5 * first and page == static(file) and len(page) < 3e6


@pytest.fixture
def server(tmp_path):
    append(tmp_path / "rksp_history.jsonl", calm())
    with LiveServer(LivePage([tmp_path])) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_it_serves_the_page_and_its_state(server, tmp_path):
    answer, body = ask(server, "/page?version=1")
    assert answer.status == 200 and body == static(tmp_path)
    assert json.loads(ask(server, "/state")[1])["runs"][0]["step"] == 20
    answer, body = ask(server, "/")
    assert b"<iframe" not in body and b"Waiting for the run" in body
    assert ask(server, "/page", method="HEAD")[1] == b""
    assert ask(server, "/../etc/passwd")[0].status == 404
    assert ask(server, "/state", method="POST")[0].status == 501 and ask(server, "/", method="POST")[0].getheader(
        "Referrer-Policy"
    )
    for name in ("Cache-Control", "Content-Security-Policy", "Cross-Origin-Resource-Policy", "X-Content-Type-Options"):
        assert answer.getheader(name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rksp_history.jsonl"], "nothing is written"


def test_another_host_is_refused(server):
    port = server.server_address[1]
    for host in (
        f"evil.example:{port}",
        "evil.example",
        f"localhost.evil.example:{port}",
        ":",
        f"127.0.0.1.evil.example:{port}",
    ):
        for path in ("/", "/page", "/state"):
            answer, body = ask(server, path, host)
            assert answer.status == 403 and b"kind" not in body, host
    for host in (f"localhost:{port}", "127.0.0.1", "127.0.0.1:9000", "localhost:80"):  # the port may be forwarded
        assert ask(server, "/state", host)[0].status == 200


def test_another_site_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    for path, status in (("/state", 403), ("/page", 403), ("/", 200)):
        connection.request("GET", path, headers={"Sec-Fetch-Site": "cross-site"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_a_defect_is_said_on_the_page_and_once_on_the_terminal(server, monkeypatch, caplog):
    monkeypatch.setattr(LivePage, "html", lambda page: 1 / 0)
    for _ in range(2):
        answer, body = ask(server, "/page")
        assert answer.status == 500 and b"ZeroDivisionError" in body
    assert caplog.text.count("ZeroDivisionError") == 1


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1" and server.address.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_refused_by_its_name(server, capsys):
    port = server.server_address[1]
    assert main(["watch", ".", "--port", str(port)]) == 2
    assert f"port={port}" in capsys.readouterr().err
    assert main(["watch", ".", "--port", "70000"]) == 2


def test_a_broken_history_is_said_on_the_page(server, tmp_path):
    with (tmp_path / "rksp_history.jsonl").open("a") as stream:
        stream.write("[]\n")
    assert "line" in json.loads(ask(server, "/state")[1])["runs"][0]["error"]
    assert ask(server, "/page")[0].status == 503
