"""Memory goes back to the operating system."""

import subprocess
import sys

import pytest

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
