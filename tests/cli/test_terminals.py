"""Output on terminals that do not take every sign, and names that are no text."""

import io
import json
import os
import subprocess
import sys

import pytest

from hf_rksp.cli import terminal
from hf_rksp.cli.main import main

from .conftest import FAST, TINY

GPT2 = ["--init", "gpt2", "--config-overrides", TINY]


class Stream(io.TextIOWrapper):
    """A terminal of some encoding, in whose place pytest's own stands."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Run ``rksp`` on a terminal of the encoding; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(encoding, *argv):
        out, err = Stream(encoding), Stream(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        code = main([str(a) for a in argv])
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        return code, out.text(), err.text()

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "cp932", "utf-8"])
def test_every_encoding_gets_the_numbers(on, encoding):
    code, out, err = on(encoding, "audit", *GPT2, "--out", "r", *FAST)
    assert code == 0 and "h.1" in out and "Traceback" not in err
    assert ("+/-" if encoding in ("ascii", "cp932") else "±") in out or encoding == "cp932"


def test_signs_that_are_missing_are_written_alike():
    stream = Stream("ascii")
    terminal.speak_plainly()
    stream.reconfigure(errors="hf_rksp.alike")
    stream.write("0.5 ±0.1 – 3 × 10 ≥ κ 漢 \udcff")
    assert stream.text() == "0.5 +/-0.1 - 3 x 10 >= kappa \\u6f22 \\udcff"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_json_everywhere(on, encoding, tmp_path):
    folder = tmp_path / "modèle 漢😀"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300})
    )
    code, out, _ = on(encoding, "audit", "--init", folder, "--json", "-", "--groups", 0, "--tokens", 128, "--quiet")
    assert code == 0 and json.loads(out)["profile"]["model"]["name"] == "modèle 漢😀"
    assert out.isascii() == (encoding != "utf-8")


@pytest.mark.parametrize(
    "argv", [["--help"], ["audit", "--help"], ["zoo", "--help"], ["audit", "./modèle–±漢"], ["--modèle"]]
)
def test_help_and_errors(on, argv):
    code, out, err = on("ascii", *argv)
    assert code in (0, 2) and "Traceback" not in err and (out + err).isascii()


def test_half_characters(on, tmp_path):
    assert json.loads(terminal.json_for('{"a": "\udcff é"}', "utf-8")) == {"a": "\udcff é"}
    assert terminal.json_for('{"a": "é😀"}', "cp1252") == '{"a": "\\u00e9\\ud83d\\ude00"}'
    code, _, err = on("utf-8", "audit", "./nowhere\udcff")
    assert code == 2 and "does not exist" in err
    code, out, err = on("utf-8", "audit", *GPT2, "--out", "r\udcff", *FAST)
    assert code == 0, err
    assert "r\\udcff" in out


def test_a_process_in_the_c_locale(tmp_path):
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "hf_rksp.cli.main", "audit", *GPT2, *FAST[:-1], "--out", "r"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and b"h.1" in done.stdout and b"+/-" in done.stdout, done.stderr
