"""A small experiment to run, in a folder of the test."""

import textwrap

import pytest

from scripts.reproduce.harness import rows
from scripts.reproduce.harness.cli import main

CONFIG = """
settings: {factor: 3}
report:
  seeds: 3
  sweep:
    - {kind: [plain, other], lr: [1e-3, 0.5]}
"""
CODE = """
import os, signal, time
from pathlib import Path

HERE = Path(__file__).parent

def run(job, settings):
    if (HERE / "broken").exists() and job["kind"] == "other":
        raise RuntimeError("this kind is broken")
    if (HERE / "deadly").exists() and job["seed"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if (HERE / "slow").exists():
        time.sleep(0.2)
    return {"value": settings["factor"] * job["lr"] + job["seed"], "threads": os.environ.get("OMP_NUM_THREADS")}

def tables(rows, settings):
    return "".join(f"{row['seed']} {row['kind']} {row['lr']:g} {row['value']:g}\\n" for row in rows)
"""


class Experiment:
    """A folder with an experiment, and the command line on it."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.results, self.page = folder / "results.jsonl", folder / "results.md"
        self.write(CONFIG, CODE)

    def write(self, config=None, code=None):
        for name, text in (("config.yaml", config), ("experiment.py", code)):
            if text is not None:
                (self.folder / name).write_text(textwrap.dedent(text))

    def __call__(self, *options):
        workers = () if "--workers" in options else ("--workers", "1")
        return main([self.folder.name, "--root", str(self.folder.parent), *workers, *options])

    def rows(self):
        return rows.read(self.results)

    def flag(self, name, there=True):
        (self.folder / name).touch() if there else (self.folder / name).unlink()


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "toy")
