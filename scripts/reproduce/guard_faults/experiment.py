"""Runs that are hit by a fault: which are recovered, and what does the guard do to runs without one?"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.intervals import share
from scripts.reproduce.harness.markdown import table

from .faults import DEATHS, FLOAT16, LEFT, LIVE, damage

WORKER = Path(__file__).with_name("worker.py")
_MODULES = {"arc": "arc", "stabilityguard": "stabilityguard", "olmo": "olmo_core"}
_TOOLS = {
    "guard": "the guard",
    "trainer": "plain Trainer",
    "arc": "arc-training",
    "stabilityguard": "stabilityguard",
    "olmo": "OLMo-core",
}
#: Seconds after which the processes of a job are ended.
_LONG = 1500
#: What an intervention of the guard is called in the history.
_ACTS = ("left out", "rate cut", "KSS on", "rolled back", "stopped")


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there, and the other tools are installed."""
    wikitext_file("validation")
    wikitext_file("test")
    for tool in {job["tool"] for job in jobs} & _MODULES.keys():
        if importlib.util.find_spec(_MODULES[tool]) is None:
            raise ValueError(
                f"{_MODULES[tool]} is not installed: see README.md, or leave it out with --only tool=guard"
            )


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Start the processes of a job; for each fault what became of its run."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        if job["kind"] == "clean":
            seeds = [100 + settings["clean_runs"] * job["seed"] + place for place in range(settings["clean_runs"])]
            return {
                "runs": _processes(job, settings, base, [_task(base, f"clean {seed}", "none", seed) for seed in seeds])
            }
        live = [fault for fault in LIVE if fault != FLOAT16 or job["launcher"] == "zero2"]
        found = _processes(job, settings, base, [_task(base, fault, fault, job["seed"]) for fault in live])
        ended = []
        for death in DEATHS:
            first = _task(base, death, death, job["seed"])
            _processes(job, settings, base, [first], may_die=True)
            if death == DEATHS[0]:
                for fault in LEFT:
                    shutil.copytree(base / death, base / fault)
                    damage(base / fault, fault)
                    ended.append(_task(base, fault, fault, job["seed"], resume=True))
            ended.append(_task(base, death, death, job["seed"], resume=True))
        for task in ended:  # one by one: a run that hangs or dies takes no other with it
            found |= _processes(job, settings, base, [task], may_die=True)
        return {"runs": found}


def _task(base: Path, name: str, fault: str, seed: int, resume: bool = False) -> dict[str, Any]:
    folder = base / name
    folder.mkdir(exist_ok=True)
    return {"name": name, "fault": fault, "seed": seed, "folder": str(folder), "resume": resume}


def _processes(
    job: dict[str, Any], settings: dict[str, Any], base: Path, runs: Sequence[dict[str, Any]], may_die: bool = False
) -> dict[str, Any]:
    """Train ``runs`` one after the other on the processes of the launcher."""
    answer, task = base / "answer.json", base / "task.json"
    answer.unlink(missing_ok=True)
    task.write_text(
        json.dumps(
            {
                "settings": settings,
                "launcher": job["launcher"],
                "tool": job["tool"],
                "runs": list(runs),
                "answer": str(answer),
            }
        )
    )
    command = [sys.executable, str(WORKER), str(task)]
    if job["launcher"] != "one":
        torchrun = (
            "torch.distributed.run --rdzv_backend c10d --rdzv_endpoint 127.0.0.1:0 --local_addr 127.0.0.1".split()
        )
        command = [sys.executable, "-m", *torchrun, "--nproc_per_node", "2", *command[1:]]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=_LONG if len(runs) > 1 else _LONG / 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    found: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if process.returncode and not may_die:
        raise RuntimeError(f"the processes ended with {process.returncode}: {printed[-3000:]}")
    lost = {
        "raised": "the processes died",
        "held_out": None,
        "finite": False,
        "steps": 0,
        "events": [],
        "alarms": 0,
        "skipped": None,
        "scaled_away": 0,
        "healthy": None,
    }
    return {one["name"]: found.get(one["name"], lost) for one in runs}


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Recovered runs per fault and launcher, per tool; and what was done to runs without a fault."""
    lines = [
        *_recovered(rows, settings),
        "",
        *_tools(rows, settings),
        "",
        *_clean(rows),
        "",
        *_left(rows),
        "",
        *_differences(rows, settings),
    ]
    return "\n".join(lines) + "\n"


def reference(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float | None:
    """Held-out loss of the run without a fault: that of plain Trainer with the same launcher and seed, or of this tool."""
    for tool in ("trainer", row["tool"]):
        for other in rows:
            if (other["tool"], other["kind"], other["launcher"], other["seed"]) == (
                tool,
                "faults",
                row["launcher"],
                row["seed"],
            ):
                loss: float | None = other["runs"]["none"]["held_out"]
                return loss
    return None


def recovered(run_: dict[str, Any], clean: float | None, settings: dict[str, Any]) -> bool:
    """The run got to its end with finite weights, and its held-out loss is that of the run without a fault, within the margin."""
    whole = (
        run_["raised"] is None
        and run_["finite"]
        and run_["held_out"] is not None
        and run_["steps"] == settings["steps"]
    )
    return bool(whole and clean is not None and run_["held_out"] <= clean + settings["margin"])


def _faults(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = [name for row in rows if row["kind"] == "faults" for name in row["runs"] if name != "none"]
    return list(dict.fromkeys(names))


def _of(rows: Sequence[dict[str, Any]], tool: str, launcher: str | None = None) -> list[dict[str, Any]]:
    return [
        row for row in rows if row["tool"] == tool and row["kind"] == "faults" and launcher in (None, row["launcher"])
    ]


def _recovered(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    launchers = list(dict.fromkeys(row["launcher"] for row in rows))
    cells = []
    for fault in _faults(rows):
        line = [fault]
        for tool in ("guard", "trainer"):
            for launcher in launchers:
                mine = [row for row in _of(rows, tool, launcher) if fault in row["runs"]]
                hits = sum(recovered(row["runs"][fault], reference(rows, row), settings) for row in mine)
                line.append(f"{hits} of {len(mine)}" if mine else "-")
        cells.append(line)
    head = ["fault", *(f"guard, {one}" for one in launchers), *(f"Trainer, {one}" for one in launchers)]
    return ["### Recovered runs, with the guard and with plain Trainer", "", *table(head, cells)]


def _tools(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    cells = []
    tools = [tool for tool in _TOOLS if _of(rows, tool, "one")]
    for fault in _faults(rows):
        line = [fault]
        for tool in tools:
            mine = [row for row in _of(rows, tool, "one") if fault in row["runs"]]
            hits = sum(recovered(row["runs"][fault], reference(rows, row), settings) for row in mine)
            line.append(f"{hits} of {len(mine)}" if mine else "-")
        if set(line[1:]) != {"-"}:
            cells.append(line)
    totals = ["all"]
    for tool in tools:
        runs = [(row, name) for row in _of(rows, tool, "one") for name in row["runs"] if name != "none"]
        hits = sum(recovered(row["runs"][name], reference(rows, row), settings) for row, name in runs)
        found = share(hits, len(runs))
        totals.append(
            f"{hits} of {len(runs)}, {100 * found.value:.0f}% [{100 * found.low:.0f}, {100 * found.high:.0f}]"
        )
    return [
        "### Recovered runs, on one process",
        "",
        *table(["fault", *(_TOOLS[tool] for tool in tools)], [*cells, totals]),
    ]


def _clean(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "clean":
            groups.setdefault((row["tool"], row["launcher"]), []).extend(row["runs"].values())
    for (tool, launcher), runs in groups.items():
        acted = sum(any(what in _ACTS for what, _ in run_["events"]) or bool(run_["skipped"]) for run_ in runs)
        ended = sum(run_["raised"] is None for run_ in runs)
        known = tool in ("guard", "arc")
        cells.append(
            [
                _TOOLS[tool],
                launcher,
                len(runs),
                acted if known else "not told",
                sum(run_["alarms"] for run_ in runs),
                ended,
            ]
        )
    head = ["tool", "launcher", "runs", "with a step left out or a return", "alarms", "came to their end"]
    return ["### Runs without a fault", "", *table(head, cells)]


def _left(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Runs at whose end no checkpoint was left that one can go on from: whole, finite, and not marked as ill."""
    cells = []
    for tool in _TOOLS:
        runs = [run_ for row in _of(rows, tool) for run_ in row["runs"].values() if run_["healthy"] is not None]
        if runs:
            cells.append([_TOOLS[tool], len(runs), sum(not run_["healthy"] for run_ in runs)])
    return [
        "### Checkpoints that are left",
        "",
        *table(["tool", "runs", "without a healthy checkpoint at the end"], cells),
    ]


def _differences(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    cells = []
    for fault in _faults(rows):
        losses, acts = [], []
        for row in _of(rows, "guard"):
            run_, clean = row["runs"].get(fault), reference(rows, row)
            if run_ is None:
                continue
            if run_["held_out"] is not None and clean is not None:
                losses.append(run_["held_out"] - clean)
            acts += [what for what, _ in run_["events"] if what in _ACTS or what == "not saved"]
        count = {what: acts.count(what) for what in dict.fromkeys(acts)}
        done = ", ".join(f"{what} {times}" for what, times in count.items())
        cells.append([fault, f"{min(losses):+.3f} to {max(losses):+.3f}" if losses else "-", done or "nothing"])
    head = ["fault", "held-out loss against the run without a fault, nats", "what the guard did, in all runs"]
    return ["### What the guard did", "", *table(head, cells)]
