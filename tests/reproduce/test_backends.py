"""Where a job runs makes no difference to its row."""

import importlib.util

import pytest


def compared(experiment):
    """The rows without what differs from run to run."""
    kept = [
        {name: value for name, value in row.items() if name not in ("seconds", "date")} for row in experiment.rows()
    ]
    return sorted(kept, key=lambda row: (row["seed"], row["kind"], row["lr"]))


@pytest.mark.parametrize(
    "backend",
    [
        "loky",
        pytest.param(
            "ray",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'hf_rksp[ray]'"
            ),
        ),
    ],
)
def test_workers_give_the_rows_of_one_process(experiment, backend, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert experiment() == 0
    expected, page = compared(experiment), experiment.page.read_text()
    experiment.results.unlink()
    experiment.page.unlink()
    assert experiment("--workers", "2", "--backend", backend) == 0
    assert compared(experiment) == expected and len(expected) == 12
    assert experiment.page.read_text() == page
    if backend == "ray":
        import ray

        ray.shutdown()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_missing_is_said_before_anything_runs(experiment, capsys):
    assert experiment("--backend", "ray") == 2
    assert "pip install 'hf_rksp[ray]'" in capsys.readouterr().err and not experiment.results.exists()
