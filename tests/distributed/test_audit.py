"""One audit by two processes: the report of one process."""

import json

import pytest
import torch

from tests.distributed.launch import TORCHRUN, WORKERS, start

#: Few tokens: the samples are gathered, and the numbers are equal to the bit. Many: moments are all-reduced.
RUNS = {
    "samples": (["--tokens", "64"], 0.0),
    "moments": (["--tokens", "1024"], 1e-9),
    "streamed": (["--tokens", "64", "--stream"], 0.0),
}
MODEL = ["audit", "--init", "gpt2", "--config-overrides", "n_layer=3,n_embd=64,n_head=2,vocab_size=512"]
TEXT = ["--seq-len", "8", "--batch-size", "2", "--groups", "4", "--quiet"]


def close(one, other, tolerance):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=tolerance, abs=tolerance)
    return one == other


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_give_the_report_of_one(tmp_path, run):
    more, tolerance = RUNS[run]
    for processes in (1, 2):
        script = ["hf_rksp.cli.main", *MODEL, *TEXT, *more, "--json", str(tmp_path / f"{processes}.json")]
        command = ["-m", *TORCHRUN, "--nproc_per_node", "2", "-m", *script] if processes == 2 else ["-m", *script]
        start(command, timeout=200)
    one, two = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert (one["profile"]["cost"]["processes"], two["profile"]["cost"]["processes"]) == (1, 2)
    for layer in (*one["profile"]["layers"], *two["profile"]["layers"]):
        assert layer["tokens"] == one["profile"]["layers"][0]["tokens"]
        # A bracket that a search found; its last digits depend on the last digits of the operator.
        layer.pop("kreiss_constant")
        # Six digits, in the order of LAPACK, which rounding may change.
        layer.pop("eigenvalues"), layer.pop("residuals")
    assert one["profile"]["layers"][0]["standard_errors"]
    for section in ("layers", "thirds"):
        assert close(one["profile"][section], two["profile"][section], tolerance), section
    assert close(one["verdict"], two["verdict"], tolerance)


def profile(mode, folder, processes):
    script = [str(WORKERS / "shared_profile.py"), mode, str(folder)]
    start(script if processes == 1 else ["-m", *TORCHRUN, "--nproc_per_node", "2", *script], timeout=200)
    return [torch.load(path) for path in sorted(folder.glob(f"{mode}-*.pt"))]


def test_processes_part_the_layers_alike(tmp_path):
    """The last batch is shorter than the others, so one process sees fewer rows than the other."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    want, got = profile("parts", one, 1), profile("parts", two, 2)
    assert got[0] == got[1] and len(got[0]) == 4
    assert torch.allclose(torch.tensor(got[0]), torch.tensor(want[0]), rtol=1e-6)


def test_shared_audit_resumes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    want = profile("whole", one, 1)
    assert profile("stop", two, 2) == []
    assert {path.read_text() for path in two.glob("stop-*.txt")} == {"KeyboardInterrupt: "}
    got = profile("whole", two, 2)
    assert got[0] == got[1]
    assert torch.allclose(torch.tensor(got[0]), torch.tensor(want[0]), rtol=1e-6)
    # One process's state is older than the other's: refused by both, not mixed.
    (two / "state" / "process-1" / "state.pt").unlink()
    for path in two.glob("whole-*.pt"):
        path.unlink()
    assert profile("whole", two, 2) == []
    said = [path.read_text() for path in sorted(two.glob("whole-*.txt"))]
    assert len(said) == 2 and all("stopped at different blocks; delete it to begin anew" in text for text in said)


def test_fewer_batches_than_processes_are_refused(tmp_path):
    script = ["hf_rksp.cli.main", *MODEL, "--tokens", "16", "--seq-len", "8", "--batch-size", "8", "--json", "-"]
    with pytest.raises(AssertionError, match="1 batches for 2 processes: pass a smaller --batch-size"):
        start(["-m", *TORCHRUN, "--nproc_per_node", "2", "-m", *script], timeout=200)
