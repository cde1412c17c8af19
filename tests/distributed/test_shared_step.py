"""Before step 0, two processes measure what one does, in about half of the passes each."""

import json

import pytest

from tests.distributed.launch import TORCHRUN, WORKERS, start

#: What differs by right: costs, and where a line search begins.
_OWN = ("forwards", "cost", "seconds", "processes", "peak_memory_bytes", "setup")


def close(one, other, path=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one.keys() - set(_OWN):
            close(one[name], other[name], f"{path}/{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            close(a, b, f"{path}/{place}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-9, nan_ok=True), path
    elif not (isinstance(one, str) and one.startswith(("tensor", "ModelProfile"))):
        assert one == other, path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("shared")
    script = [str(WORKERS / "shared_step.py"), str(folder)]
    start([*script, "1"], timeout=200)
    start(["-m", *TORCHRUN, "--nproc_per_node", "2", *script, "2"], timeout=300)
    return [json.loads((folder / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json")]


@pytest.mark.parametrize("what", ["start", "averaged", "moved", "few", "collective"])
def test_two_processes_measure_what_one_does(measured, what):
    one, first, second = measured
    close(one[what], first[what])
    close(first[what], second[what])


def test_sums_over_all_batches_are_measured(measured):
    """The batches have gradients in common: without that there is no noise scale to compare."""
    assert all(each["start"]["step"]["noise_scale"] > 0 for each in measured)


def test_each_takes_its_part_of_the_passes(measured):
    one, first, _ = measured
    cost, alone = first["averaged"]["cost"], one["averaged"]["cost"]
    assert cost["products"] == alone["products"] == 4
    assert cost["backwards"] == alone["backwards"], "no gradient is taken twice"


def test_a_loss_with_a_collective_is_measured_by_each(measured):
    one, first, second = measured
    assert one["allowed"] == [False, False] and first["allowed"] == second["allowed"] == [True, False]


def test_an_error_in_one_process_ends_both(measured):
    one, first, second = measured
    assert "batches[7]" in one["broken"] and "batches[7]" in first["broken"] and "batches[7]" in second["broken"]
    assert all(each["unchanged"] for each in measured)
