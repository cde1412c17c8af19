"""Run jobs in worker processes and append their rows as they come."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, register_parallel_backend
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from hf_rksp.machine import now, versions
from scripts.reproduce.harness import rows
from scripts.reproduce.harness.config import ExperimentError, Job, Section
from scripts.reproduce.harness.experiment import load

BACKENDS = ("loky", "ray")
#: What the harness writes into a row itself.
RESERVED = ("status", "error", "traceback", "seconds", "date", "versions")


def run(section: Section, jobs: list[Job], workers: int, backend: str = "loky", budget: float = math.inf) -> int:
    """Run ``jobs`` of a section; their rows are in its results file as soon as each has ended.

    Args:
        workers: jobs at a time. backend: ``"loky"``, processes on this machine, or ``"ray"``.
        budget: machine hours, which are hours times workers; when they are spent no further job starts.

    Returns:
        How many jobs failed.

    Raises:
        ExperimentError: Ray is not installed, another run writes the file, or a worker process was killed.
    """
    killed: type[Exception] = _register_ray(workers) if backend == "ray" else TerminatedWorkerError
    deadline = time.time() + budget * 3600 / workers
    failed = 0
    with rows.appending(section.results) as append, tqdm(total=len(section.jobs), unit="job") as bar:
        bar.initial = bar.n = len(section.jobs) - len(jobs)
        for line in _lines(section, jobs, workers, backend, deadline, killed):
            append(line)
            failed += not rows.ok(json.loads(line))
            bar.update()
            if failed:
                bar.set_postfix(failed=failed)
    return failed


def _lines(
    section: Section, jobs: list[Job], workers: int, backend: str, deadline: float, killed: type[Exception]
) -> Iterator[str]:
    """The rows in the order in which the jobs end; ``killed`` is what the backend raises if a worker process dies."""
    # joblib looks a few jobs ahead, so each job looks at the deadline again when it starts.
    calls = (delayed(work)(section.folder, job, section.settings, deadline) for job in jobs if time.time() < deadline)
    parallel = Parallel(workers, backend, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
    lines = parallel(calls)
    try:
        yield from (line for line in lines if line)
    except killed as error:
        raise ExperimentError(
            "a worker process was killed, often because memory ran out. The rows so far are kept, and the same command goes on; "
            f"fewer --workers need less memory.\n{error}"
        ) from None
    finally:
        lines.close()


def work(folder: Path, job: Job, settings: dict[str, Any], deadline: float = math.inf) -> str:
    """One job in a worker process: its row as a line of JSON, or nothing if the deadline has passed."""
    if time.time() >= deadline:
        return ""
    experiment = load(folder)
    start = time.perf_counter()
    try:
        result = {"status": "ok"} | _result(experiment.run, job, settings)
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    seconds = round(time.perf_counter() - start, 1)
    return json.dumps(job | result | {"seconds": seconds, "date": now(), "versions": versions()})


def _result(
    function: Callable[[Job, dict[str, Any]], dict[str, Any]], job: Job, settings: dict[str, Any]
) -> dict[str, Any]:
    """What an experiment returned, as plain values."""
    result = function(dict(job), settings)
    if taken := [name for name in result if name in job or name in RESERVED]:
        raise ValueError(f"run returned {taken}, which the harness writes itself; choose other names")
    return json.loads(json.dumps(result, default=_plain))


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; anything else that JSON does not know is refused."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"run returned a {type(value).__name__}, which is no value of JSON: {value!r:.100}")


def _register_ray(workers: int) -> type[Exception]:
    """Make Ray known to joblib, on this machine or, if RAY_ADDRESS is set, on that cluster.

    Returns:
        The exception of a worker process that died.
    """
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError:
        raise ExperimentError(
            "--backend ray: Ray is not installed; pip install 'hf_rksp[ray]', or leave it out"
        ) from None

    class RowsAsTheyCome(RayBackend):
        """Ray's backend takes over joblib's no to generators from multiprocessing's pool, though its own pool calls back."""

        supports_return_generator = True

    if "RAY_ADDRESS" not in os.environ and not ray.is_initialized():
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    register_parallel_backend("ray", RowsAsTheyCome)
    return ray.exceptions.RayActorError
