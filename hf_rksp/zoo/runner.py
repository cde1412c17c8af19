"""Audit the models of a manifest, one process each, and keep what comes out. The only writer of results.

A process of its own because an audit may need nearly all memory there is: it ends with the audit, it can be watched and
stopped, and its peak memory is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hf_rksp.errors import InputError
from hf_rksp.files import check_writable, put_files
from hf_rksp.json_data import dumps
from hf_rksp.machine import now, versions
from hf_rksp.profile.resume import discard
from hf_rksp.zoo.manifest import Manifest, ZooModel
from hf_rksp.zoo.shelf import describe_model, failure_path, read_result, result_path, shortened, without_spectrum

#: Lines of a failed audit that are kept.
_TAIL = 20
_EVERY = 0.2


@dataclass(frozen=True)
class RunnerOptions:
    """How to run a manifest.

    Attributes:
        folder: where results go: zoo_reports of a clone.
        memory_cap_gib: an audit that takes more is stopped and kept as a failure; 0: no cap.
        with_hub: also run what needs the Hub.
        only: ids of the models to run; empty: all. size: a part of their ids, such as "7b"; empty: all.
        seeds: at most that many of each model's seeds; 0: all.
        again: also what is done, to measure it anew; a result is replaced when the new one is there.
        work: where audits keep what they need to go on, and results that are not on the shelf yet.
        quiet: no progress of the audits.
    """

    folder: Path
    memory_cap_gib: float = 0.0
    with_hub: bool = False
    only: tuple[str, ...] = ()
    size: str = ""
    seeds: int = 0
    again: bool = False
    work: Path = Path("out/zoo")
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.memory_cap_gib < 0 or self.seeds < 0:
            raise InputError(
                f"memory_cap_gib={self.memory_cap_gib}, seeds={self.seeds}: pass numbers from 0 (0: no limit)"
            )


@dataclass(frozen=True)
class Job:
    """One audit: a model with a seed, and its state: "to run", "done", "stale" (done by another command, or to be done
    again all the same), or "skipped" (it needs the Hub). ``audit``: the report that is there."""

    model: ZooModel
    seed: int
    state: str
    audit: Mapping[str, Any] | None = None


def plan(manifest: Manifest, options: RunnerOptions) -> list[Job]:
    """What there is to do, in order; nothing is started.

    Raises:
        InputError: ``only`` or ``size`` names a model that the manifest does not have.
    """
    ids = [model.id for model in manifest.models]
    if unknown := [name for name in options.only if name not in ids]:
        raise InputError(f"only={unknown[0]!r} is not in {manifest.path}: choose among {', '.join(ids)}")
    chosen = [
        model
        for model in manifest.models
        if (not options.only or model.id in options.only) and (not options.size or options.size in model.id.split("-"))
    ]
    if not chosen:
        raise InputError(f"size={options.size!r} is part of no id in {manifest.path}: {', '.join(ids)}")
    jobs = []
    for model in chosen:
        for seed in model.seeds[: options.seeds or None]:
            audit = read_result(options.folder, model, seed)
            same = audit is not None and audit["profile"]["setup"].get("command") == model.command(seed)
            if same and not options.again:
                state = "done"
            elif model.needs_hub and not options.with_hub:
                state = "skipped"
            else:
                state = "to run" if audit is None else "stale"
            jobs.append(Job(model, seed, state, audit))
    return jobs


def run_manifest(
    manifest: Manifest, options: RunnerOptions, audit: Sequence[str], say: Callable[[str], None] = print
) -> tuple[int, int]:
    """Run what `plan` says is to be run; an audit that fails is kept and the next one goes on.

    Args:
        manifest, options: what to run, and how.
        audit: the command that audits one model: its options, and ``--json FILE`` for the result, are added.
        say: is called with each line of progress.

    Returns:
        How many audits were done now, and how many failed.
    """
    check_writable(options.folder)
    jobs = plan(manifest, options)
    for model in {job.model.id: job.model for job in jobs}.values():
        _write(options.folder / model.id / "model.json", describe_model(model))
    waiting = [job for job in jobs if job.state in ("to run", "stale")]
    done = failed = 0
    for number, job in enumerate(waiting, 1):
        say(f"[{number}/{len(waiting)}] {job.model.title}, seed {job.seed}: {job.model.command(job.seed)}")
        started = time.monotonic()
        problem = _audit(job, options, audit)
        failure = failure_path(options.folder, job.model, job.seed)
        if problem is None:
            done += 1
            failure.unlink(missing_ok=True)
            say(f"    done in {time.monotonic() - started:.0f} s")
        else:
            failed += 1
            _write(failure, problem)
            say(f"    failed: {problem['error']} (kept in {failure})")
    return done, failed


def _audit(job: Job, options: RunnerOptions, audit: Sequence[str]) -> dict[str, Any] | None:
    """Run one audit and keep its result; ``None``, or what went wrong."""
    model, place = job.model, options.work / f"{job.model.id}-{job.seed}"
    arguments, own = model.arguments_of(job.seed), model.command(job.seed)
    # Not a temporary file: an audit of hours is not lost if this process ends before it has put it on the shelf.
    result = Path(f"{place}.json")
    data = None if options.again else _left(result, own)
    if data is None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        if "--stream" in arguments:
            arguments += ["--resume", str(place)]
        if options.again:
            try:
                discard(place)
            except InputError as error:  # another run is at work on it
                return _failure(job, None, str(error), ())
        command = [*audit, *arguments, "--json", str(result)]
        code, tail, capped = _watched([*command, *(["--quiet"] if options.quiet else [])], options.memory_cap_gib)
        data = _left(result, own) if code == 0 else None
        if data is None:
            return _failure(job, code, _reason(code, tail, capped, options.memory_cap_gib), tail)
    data["profile"]["setup"]["command"] = own
    target = result_path(options.folder, model, job.seed)
    _write(target, shortened(data) if job.seed == model.seeds[0] else without_spectrum(data))
    result.unlink()
    return None


def _left(result: Path, command: str) -> dict[str, Any] | None:
    """The audit that lies in ``result``, where it is of ``command``."""
    try:
        data = json.loads(result.read_text(encoding="utf-8"))
        return data if data["profile"]["setup"]["command"].startswith(f"{command} ") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _failure(job: Job, code: int | None, error: str, output: Iterable[str]) -> dict[str, Any]:
    return {
        "id": job.model.id,
        "seed": job.seed,
        "command": job.model.command(job.seed),
        "exit_code": code,
        "error": error,
        "output": list(output),
        "date": now(),
        "versions": versions(),
    }


def _reason(code: int, tail: Sequence[str], capped: bool, cap_gib: float) -> str:
    """Why an audit ended, and what may help."""
    if capped:
        return f"stopped: it took more than memory_cap_gib={cap_gib:g}; raise --memory-cap, or add --stream to its arguments"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; if memory ran out, free some, or add --stream to its arguments"
    own = [text for text in tail if text.startswith("rksp: error:")]
    others = [text for text in tail if not text.endswith(" ...")]
    return (own or others or [f"it ended with exit code {code} and said nothing"])[-1]


def _watched(command: list[str], cap_gib: float) -> tuple[int, deque[str], bool]:
    """Run ``command``, pass its stderr on, and stop it if it takes more memory than allowed."""
    import psutil

    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    capped = False
    with _ended(
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    ) as process:
        tail: deque[str] = deque(maxlen=_TAIL)
        assert process.stderr is not None
        reader = threading.Thread(target=_pass_on, args=(process.stderr, tail), daemon=True)
        reader.start()
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(process.pid).memory_info().rss
                if cap_gib and used > cap_gib * 2**30 and not capped:
                    capped = True
                    process.kill()
            time.sleep(_EVERY)
        reader.join()
    return process.returncode, tail, capped


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Do not leave the process behind when this one is interrupted."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _pass_on(stream: IO[str], tail: deque[str]) -> None:
    """Lines and the steps of a progress bar, as they come; whole lines of text are kept."""
    for text in iter(stream.readline, ""):
        sys.stderr.write(text)
        sys.stderr.flush()
        last = text.rstrip("\n").rpartition("\r")[2].strip()
        if last and "it/s" not in last and "layer/s" not in last and "s/layer" not in last:
            tail.append(last)


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    put_files({path.name: dumps(data).encode()}, path.parent)
