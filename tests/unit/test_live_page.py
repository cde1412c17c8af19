"""The page of a run that goes on: the same bytes as the static one, read by offset, served to this machine alone."""

import http.client
import json
import threading
import time

import pytest

from hf_rksp.cli.main import main
from hf_rksp.errors import InputError, SchemaError
from hf_rksp.report import read_history, render_timeline
from hf_rksp.report.run.live import LivePage
from hf_rksp.report.run.server import LiveServer
from tests.browser.histories import calm, eventful


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
    assert live.html() is None and live.state()["steps"] == [None]
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
    assert live.state()["steps"] == [20, 20]


def test_a_later_history_of_the_folder_takes_over(tmp_path):
    append(tmp_path / "rksp_history.jsonl", calm("first"))
    live = LivePage([tmp_path])
    live.html()
    time.sleep(0.02)
    append(tmp_path / "rksp_history_2.jsonl", calm("second"))
    assert live.html() == static(tmp_path / "rksp_history_2.jsonl")


def test_a_broken_line_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "rksp_history.jsonl"
    append(file, calm()[:3])
    live = LivePage([file])
    live.html()
    with file.open("a") as stream:
        stream.write("[]\n")
    for _ in range(2):
        with pytest.raises(SchemaError, match="line 4"):
            live.html()


def test_what_can_be_no_run_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    for paths, words in (
        ([tmp_path / "report.json"], "rksp_history.jsonl"),
        ([tmp_path / "a/b/c"], "no such folder"),
        ([tmp_path] * 7, "7 runs"),
    ):
        with pytest.raises(InputError, match=words):
            LivePage(paths)


def test_a_refresh_of_a_long_run_reads_and_renders_what_is_new(tmp_path):
    """100,000 logged steps: not the time, which differs between machines, but a refresh beside the first rendering."""
    file, rows = tmp_path / "rksp_history.jsonl", calm(steps=100_000, every=20_000)
    append(file, rows[:-10])
    live = LivePage([file])
    start = time.process_time()
    live.html()
    first = time.process_time() - start
    append(file, rows[-10:])
    start = time.process_time()
    page = live.html()
    again = time.process_time() - start
    assert again < 0.5 * first and page == static(file)


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
    assert json.loads(ask(server, "/state")[1])["steps"] == [20]
    answer, body = ask(server, "/")
    assert b"<iframe" not in body and b"Waiting for the run" in body
    assert ask(server, "/page", method="HEAD")[1] == b""
    assert ask(server, "/../etc/passwd")[0].status == 404
    assert ask(server, "/state", method="POST")[0].status == 501
    for name in ("Cache-Control", "Content-Security-Policy", "Cross-Origin-Resource-Policy", "X-Content-Type-Options"):
        assert answer.getheader(name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rksp_history.jsonl"], "nothing is written"


def test_another_host_is_refused(server):
    port = server.server_address[1]
    for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"localhost.evil.example:{port}", ":"):
        for path in ("/", "/page", "/state"):
            answer, body = ask(server, path, host)
            assert answer.status == 403 and b"kind" not in body, host
    assert ask(server, "/state", f"localhost:{port}")[0].status == 200


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
    assert "line" in json.loads(ask(server, "/state")[1])["error"]
    assert ask(server, "/page")[0].status == 503
