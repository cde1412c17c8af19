"""Audit the models of a manifest, one process per audit, and store the results. The only writer of audits.

An audit may need nearly all memory. In a process of its own it can be watched and stopped, its memory is free afterwards, and
its peak memory does not include another audit.

What an audit writes to stderr is passed on unchanged, and read by three rules: what follows a carriage return is a progress bar,
unless blanks have erased the bar; a line that starts with ``rksp: error: `` is the error; other lines that start with ``rksp: ``
are progress and notes.
"""

from __future__ import annotations

import codecs
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

#: Start of the line in which an audit says why it failed.
ERROR = "rksp: error: "
#: Last lines of a failed audit that are stored.
_TAIL = 20
#: Seconds between two looks at the memory of an audit.
_INTERVAL = 0.2


@dataclass(frozen=True)
class RunnerOptions:
    """How to run a manifest.

    Attributes:
        folder: where results go: zoo_reports of a clone.
        memory_cap_gib: an audit that takes more memory, in GiB, is stopped and stored as a failure; 0: no cap.
        with_hub: whether to run models that need the Hub.
        only: ids of the models to run; empty: all.
        size: a part of the ids of the models to run, such as "7b"; empty: all.
        seeds: at most this many seeds per model; 0: all.
        again: whether to repeat audits that have results. A result is replaced when the new one is complete.
        work: where audits store their progress, and results until they are stored in ``folder``.
        quiet: whether audits show no progress.
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
                f"memory_cap_gib={self.memory_cap_gib}, seeds={self.seeds}: pass numbers of at least 0 (0: no limit)"
            )


@dataclass(frozen=True)
class Job:
    """One audit.

    Attributes:
        model: its model.
        seed: its seed.
        state: "to run", "done", "stale" (to be repeated, because the command has changed or because of ``again``), or "skipped"
            (it needs the Hub).
        audit: the stored report, if there is one.
    """

    model: ZooModel
    seed: int
    state: str
    audit: Mapping[str, Any] | None = None


def plan(manifest: Manifest, options: RunnerOptions) -> list[Job]:
    """The audits of a manifest, in order; starts nothing.

    Raises:
        InputError: the manifest has no model for ``only`` or ``size``.
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
        raise InputError(
            f"size={options.size!r} is part of no id in {manifest.path}: choose a part of {', '.join(ids)}"
        )
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
    """Run the audits that `plan` names. A failure is stored, and the next audit runs.

    Args:
        manifest: what to run.
        options: how to run it.
        audit: the command that audits one model; the options of the model and ``--json FILE`` are added.
        say: called with each line of progress.

    Returns:
        The number of audits that succeeded, and the number that failed.
    """
    check_writable(options.folder)
    jobs = plan(manifest, options)
    for model in {job.model.id: job.model for job in jobs}.values():
        write_json(options.folder / model.id / "model.json", describe_model(model))
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
            write_json(failure, problem)
            say(f"    failed: {problem['error']} (stored in {failure})")
    return done, failed


def _audit(job: Job, options: RunnerOptions, audit: Sequence[str]) -> dict[str, Any] | None:
    """Run one audit and store its result; ``None``, or the failure."""
    model, state = job.model, options.work / f"{job.model.id}-{job.seed}"
    arguments, shown = model.arguments_of(job.seed), model.command(job.seed)
    # Not a temporary file: an audit of hours is not lost if this process ends before it has stored the result.
    result = Path(f"{state}.json")
    data = None if options.again else _finished(result, shown)
    if data is None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        if "--stream" in arguments:
            arguments += ["--resume", str(state)]
        if options.again:
            try:
                discard(state)
            except InputError as error:  # another run is using it
                return _failure(job, None, str(error), ())
        command = [*audit, *arguments, "--json", str(result)]
        code, tail, capped = watched([*command, *(["--quiet"] if options.quiet else [])], options.memory_cap_gib)
        data = _finished(result, shown) if code == 0 else None
        if data is None:
            return _failure(job, code, reason(code, tail, capped, options.memory_cap_gib), tail)
    data["profile"]["setup"]["command"] = shown
    target = result_path(options.folder, model, job.seed)
    write_json(target, shortened(data) if job.seed == model.seeds[0] else without_spectrum(data))
    result.unlink()
    return None


def _finished(result: Path, command: str) -> dict[str, Any] | None:
    """The audit in the file ``result`` if ``command`` made it."""
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


def reason(code: int, tail: Sequence[str], capped: bool, cap_gib: float) -> str:
    """Why an audit failed, and what may help."""
    if capped:
        return f"stopped: it took more than memory_cap_gib={cap_gib:g}; raise --memory-cap, or add --stream to its arguments"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; if memory ran out, free some, or add --stream to its arguments"
    errors = [line for line in tail if line.startswith(ERROR)]
    others = [line for line in tail if not line.startswith("rksp: ")]
    return (errors or others or [f"exit code {code} without an error message"])[-1]


def watched(command: list[str], cap_gib: float) -> tuple[int, deque[str], bool]:
    """Run ``command``, pass its stderr on, and stop it if it takes more memory than allowed.

    Returns:
        The exit code, the last lines without progress bars, and whether it was stopped.
    """
    import psutil

    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    capped = False
    with _ended(
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
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
            time.sleep(_INTERVAL)
        reader.join()
    return process.returncode, tail, capped


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End the process if this one is interrupted."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _pass_on(stream: IO[bytes], tail: deque[str]) -> None:
    """Pass text on as it comes, progress bars too; store the lines without the bars."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    line = ""
    while chunk := os.read(stream.fileno(), 65536):
        text = decoder.decode(chunk)
        sys.stderr.write(text)
        sys.stderr.flush()
        *lines, line = f"{line}{text}".split("\n")
        tail.extend(filter(None, map(_without_bar, lines)))
    tail.extend(filter(None, [_without_bar(line)]))


def _without_bar(line: str) -> str:
    """A line without the progress bar on it: empty, or what was written after the bar had been erased."""
    *bars, text = line.removesuffix("\r").split("\r")
    return text.strip() if not bars or bars[-1].isspace() else ""


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a result aside and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    put_files({path.name: dumps(data).encode()}, path.parent)
