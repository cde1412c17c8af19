"""The examples run as a user would run them, at toy size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(tmp_path, name, *args):
    command = [sys.executable, str(EXAMPLES / name), "--out", str(tmp_path / "report"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/report.html").is_file()
    return done.stdout


def test_profile_gpt2(tmp_path):
    out = run(tmp_path, "profile_gpt2.py", "--layers", 2, "--width", 48)
    assert "h.1: near-unit mass" in out and "risk: " in out


@pytest.mark.skipif("HF_RKSP_DATA" not in os.environ, reason="HF_RKSP_DATA names no folder with real data")
def test_profile_images(tmp_path):
    images = Path(os.environ["HF_RKSP_DATA"]) / "cifar10/plain_text/test-00000-of-00001.parquet"
    out = run(tmp_path, "profile_images.py", "--images", images, "--layers", 2, "--width", 48)
    assert "over 4160 tokens" in out  # 64 images of 8 x 8 patches and one class token
