"""Try every model type of the installed transformers at a tiny size, and write down how each came out.

    python scripts/support/run.py                     # what is not done yet, then the table
    python scripts/support/run.py --only bert llama   # these
    python scripts/support/run.py --stage feed        # only as far as this stage; its rows are kept apart
    python scripts/support/run.py --status            # types by outcome, and what is left
    python scripts/support/run.py --render            # the table from the rows there are

Each type has a process of its own, forked from one that has imported everything, so that a crash, a hang or a hunger for
memory is that type's alone. Rows are appended as they come to scripts/support/rows.jsonl: a run that was stopped goes on.
At the end zoo_reports/support.json and support.md are written from them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEMORY = 12 << 30


def main(argv: list[str] | None = None) -> int:
    """Run, or tell how far the run is."""
    arguments = _arguments(argv)
    file = HERE / ("rows.jsonl" if arguments.stage == "train" else f"rows-{arguments.stage}.jsonl")
    sys.path[:0] = [str(HERE.parent), str(ROOT)]
    from support import models, table

    types = models.model_types()
    unknown = sorted(set(arguments.only) - set(types))
    if unknown:
        print(f"--only: no model types of this transformers: {', '.join(unknown)}", file=sys.stderr)
        return 2
    rows = read(file)
    if arguments.status:
        print(_status(rows, types))
        return 0
    chosen = arguments.only or types
    again = arguments.again or arguments.only
    left = [name for name in chosen if again or name not in rows or rows[name]["outcome"] in arguments.outcome]
    if not arguments.render:
        _run(left, file, arguments)
        rows = read(file)
    if arguments.render or (arguments.stage == "train" and not arguments.only):
        table.publish(rows, types, ROOT / "zoo_reports")
    print(_status(rows, types))
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--status", action="store_true", help="types by outcome, and what is left")
    parser.add_argument(
        "--render", action="store_true", help="write the table from the rows there are, and try nothing"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TYPE", help="these model types, done or not")
    parser.add_argument(
        "--outcome", nargs="+", default=[], help="also again those that came out so: fault, 'not tried', ..."
    )
    parser.add_argument("--again", action="store_true", help="all types, also those that have a row")
    parser.add_argument("--stage", choices=("build", "feed", "profile", "train"), default="train", help="how far")
    parser.add_argument("--processes", type=int, default=1, help="types at a time (default 1)")
    parser.add_argument("--limit-seconds", type=float, default=120.0, help="time for each type (default 120)")
    return parser.parse_args(argv)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The last whole row of each type."""
    rows: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):  # the last line of a run that was killed
            row = json.loads(line)
            rows[row["type"]] = row
    return rows


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row in one write; a line that was cut short before it stays alone."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    with open(file, "ab+") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            line = line if out.read(1) == b"\n" else "\n" + line
        out.write(line.encode())


def _run(left: list[str], file: Path, arguments: argparse.Namespace) -> None:
    if not left:
        return
    import torch

    torch.set_num_threads(1)
    _warm()
    running: dict[int, _Child] = {}
    waiting, done, started = list(left), 0, time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < max(arguments.processes, 1):
                child = _Child(waiting.pop(0), arguments)
                running[child.pipe] = child
            ready, _, _ = select.select(list(running), [], [], 0.2)
            for pipe in list(running):
                row = running[pipe].look(pipe in ready)
                if row:
                    del running[pipe]
                    append(file, row)
                    done += 1
                    minutes = (time.monotonic() - started) / 60
                    reason = str(row.get("reason", ""))[: None if arguments.only else 150]
                    print(f"{done}/{len(left)} {minutes:.1f} min {row['type']}: {row['outcome']} {reason}", flush=True)
    finally:
        for child in running.values():
            child.kill()


def _warm() -> None:
    """Import before the first fork what every trial imports, and let no child's collector walk (and so copy) all of it."""
    from support import trial  # noqa: F401

    for name in ("torch._dynamo", "deepspeed", "transformers.generation"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


class _Child:
    """A process that tries one type and sends its row through a pipe."""

    def __init__(self, model_type: str, arguments: argparse.Namespace) -> None:
        self.model_type, self.limit = model_type, arguments.limit_seconds
        self.pipe, out = os.pipe()
        self.started, self.data = time.monotonic(), b""
        self.process = os.fork()
        if self.process == 0:
            os.close(self.pipe)
            _child(model_type, arguments.stage, out)
        os.close(out)

    def look(self, ready: bool) -> dict[str, Any] | None:
        if ready:
            more = os.read(self.pipe, 1 << 16)
            self.data += more
            if not more:
                return self._row()
        if time.monotonic() - self.started > self.limit:
            self.kill()
            return self._left("not tried", f"took more than {self.limit:.0f} seconds")
        return None

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def _row(self) -> dict[str, Any]:
        _, status = os.waitpid(self.process, 0)
        try:
            return json.loads(self.data)
        except ValueError:
            return self._left("fault", f"its process ended with status {status}")

    def _left(self, outcome: str, reason: str) -> dict[str, Any]:
        os.close(self.pipe)
        return {"type": self.model_type, "outcome": outcome, "reason": reason, "seconds": self.limit}


def _child(model_type: str, stage: str, out: int) -> None:
    row: dict[str, Any] = {"type": model_type, "outcome": "fault", "reason": "the trial itself failed"}
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import transformers

        from support import trial

        transformers.utils.logging.set_verbosity_error()
        row = trial.trial(model_type, stage)
    except BaseException as error:
        row["reason"] = f"the trial itself failed: {type(error).__name__}: {error}"[:400]
    with os.fdopen(out, "wb") as pipe:
        pipe.write(json.dumps(row, ensure_ascii=False, default=str).encode())
    os._exit(0)


def _status(rows: dict[str, dict[str, Any]], types: list[str]) -> str:
    counts = Counter(rows[name]["outcome"] for name in types if name in rows)
    lines = [f"{count:4d} {outcome}" for outcome, count in sorted(counts.items(), key=lambda item: -item[1])]
    return "\n".join([*lines, f"{sum(name not in rows for name in types):4d} not done, of {len(types)} model types"])


if __name__ == "__main__":
    sys.exit(main())
