"""`rksp zoo publish` against an endpoint on loopback that speaks as much of the Hub's protocol as a commit needs."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits; large files are said to be regular ones, so that they come in the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            return self._answer({"error": "forbidden"}, 403)
        if self.path.endswith("/repos/create"):
            return self._answer({"url": f"{self.server.address}/datasets/me/zoo", **json.loads(body)})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self._answer(
                {"commitUrl": f"{self.server.address}/datasets/me/zoo/commit/0", "commitOid": "0" * 40, "success": True}
            )
        return self._answer({})

    def do_GET(self):
        self._answer({"sha": "0" * 40, "id": "me/zoo", "siblings": []})

    def _answer(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Nothing."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.files, server.refuses = [], {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def publish(hub, zoo, **more):
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret"} | more
    command = [sys.executable, "-m", "hf_rksp.cli.main", "zoo", "publish", "--repo-id", "me/zoo", "--folder", str(zoo)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_reports_tables_and_cards_arrive(hub, zoo):
    done = publish(hub, zoo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pushed to ") and "me/zoo" in done.stdout
    assert hub.files["README.md"] == (zoo / "DATASET_CARD.md").read_bytes()
    assert hub.files["INDEX.md"] == (zoo / "README.md").read_bytes()
    for name in (
        "parquet/layers.parquet",
        "tiny-gpt2-init/report.json",
        "tiny-gpt2-init/seed-2.json",
        "tiny-gpt2-init/model-card.yaml",
        "tiny-gpt2-init/figures/eigenvalues.svg",
        "gpt2/report.md",
        "index.html",
        "figures/scaling.svg",
    ):
        assert hub.files[name] == (zoo / name).read_bytes(), name
    assert not any("failures" in name for name in hub.files)
    assert "gpt2/report.html" not in hub.files
    assert all(token == "Bearer hf_secret" for _, token in hub.asked)


def test_a_refusal_is_said_and_nothing_is_lost(hub, zoo):
    hub.refuses = True
    done = publish(hub, zoo)
    assert done.returncode == 1 and not hub.files
    assert "repo_id='me/zoo': 403" in done.stderr and "push again" in done.stderr


def test_not_logged_in(hub, zoo, tmp_path):
    done = publish(hub, zoo, HF_TOKEN="", HF_HOME=str(tmp_path))
    assert (
        done.returncode == 1
        and "repo_id: not logged in" in done.stderr
        and "hf auth login" in done.stderr
        and not hub.asked
    )


def test_not_rendered(hub, tmp_path):
    done = publish(hub, tmp_path)
    assert done.returncode == 2 and "run `rksp zoo render` first" in done.stderr
