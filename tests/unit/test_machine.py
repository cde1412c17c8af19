"""Memory: what is left of it, and that it goes back to the operating system."""

import subprocess
import sys

import psutil
import pytest

from hf_rksp import machine
from hf_rksp.machine import available_memory

SCRIPT = """
import torch, psutil
from hf_rksp.machine import return_freed_memory
if {asked}:
    return_freed_memory()
used = lambda: psutil.Process().memory_info().rss / 2**20
torch.ones(30 * 2**18)  # 30 MiB: glibc keeps chunks of up to this size from now on
before, parts = used(), []
for _ in range(20):
    parts += [torch.ones(10 * 2**18), torch.ones(2**15)]
held = used() - before
del parts[0:-1:2]
print(held, used() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps it")
def test_freed_memory_is_returned():
    def run(asked):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(asked=asked)], capture_output=True, text=True, check=True
        )
        return [float(part) for part in out.stdout.split()]

    (held, kept), (held_too, returned) = run(False), run(True)
    assert held > 150 and held_too > 150
    assert returned < 20 < 100 < kept  # without it, most of it stays


def group(folder, limit, used, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("max", limit), ("current", used), ("stat", f"anon {used}\ninactive_file {cache}")):
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_a_container_or_a_job_may_leave_less_memory_than_the_machine_has(tmp_path, monkeypatch):
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/old\n0::/job/step\n")
    monkeypatch.setattr(machine, "_OWN_GROUP", own)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    free = psutil.virtual_memory().available
    assert abs(available_memory() - free) < 2**30  # no limits
    group(tmp_path / "groups/job/step", "max", 500)
    assert abs(available_memory() - free) < 2**30
    group(tmp_path / "groups/job", 1000, 700, cache=100)
    assert available_memory() == 400  # the cache of files gives way
    group(tmp_path / "groups/job/step", 300, 500)
    assert available_memory() == 0
