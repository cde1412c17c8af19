"""Folders that two processes write, and disks that cannot be written to."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_rksp
from hf_rksp import DivergenceGuard, SpectralMonitor, TrainingRun
from hf_rksp.report import audit_to_dict, read_report
from tests.training.common import gpt2, token_rows
from tests.training.test_alignment import batches

ROOT = Path(hf_rksp.__file__).parents[1]
WRITES = """
import sys
from hf_rksp.report import audit_to_dict, read_report, write_report
data = audit_to_dict(read_report(sys.argv[1]))
for _ in range(8):
    write_report(data, sys.argv[2])
"""


def test_two_processes_that_write_one_report(tmp_path):
    """Whoever comes last, each file is whole."""
    source = ROOT / "zoo_reports/gpt2-small-000/report.json"
    command = [sys.executable, "-c", WRITES, str(source), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert audit_to_dict(read_report(tmp_path)) == audit_to_dict(read_report(source))
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".rksp-")], "nothing is left aside"


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_read_only_disk_does_not_end_a_run(tmp_path, monkeypatch, caplog, when):
    model, data = gpt2(0.0).train(), batches(token_rows(32).rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    true = {name: getattr(Path, name) for name in ("open", "mkdir", "touch")}

    def read_only():
        for name, method in true.items():

            def refuse(self, *args, method=method, **kwargs):
                if tmp_path in self.parents:
                    raise OSError(errno.EROFS, "Read-only file system")
                return method(self, *args, **kwargs)

            monkeypatch.setattr(Path, name, refuse)

    if when == "from the start":
        read_only()
    with TrainingRun(model, tmp_path / "run", len(data), [SpectralMonitor(), DivergenceGuard()]) as run:
        for batch in data:
            model(**batch).loss.backward()
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
            if when == "later":
                read_only()
    assert run.step_number == len(data)
    assert sum("Read-only file system" in row.getMessage() for row in caplog.records) == 1, "said once"
