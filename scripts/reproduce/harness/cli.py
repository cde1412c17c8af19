"""Run an experiment, go on with it, and print its tables.

    python -m scripts.reproduce                                   the experiments and how far each is
    python -m scripts.reproduce kss_default --workers 2           run what has no row yet; Ctrl-C stops, the same command goes on
    python -m scripts.reproduce kss_default --only task=recall arm=clip --seeds 3
    python -m scripts.reproduce kss_default --status              how many jobs are done, machine hours spent and left
    python -m scripts.reproduce kss_default --table               the tables from the rows there are
    python -m scripts.reproduce new NAME                          start a new experiment: a folder that runs

An experiment is a folder with config.yaml (settings, seeds, what is swept), experiment.py (one job -> one row, rows ->
tables), README.md, and what comes out: results.jsonl (one row a job) and results.md (the tables). Run it from the root of
the repository.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from pathlib import Path

from scripts.reproduce.harness.config import REPORT, ExperimentError, Section, section, sections
from scripts.reproduce.harness.experiment import load
from scripts.reproduce.harness.progress import progress, write_page
from scripts.reproduce.harness.run import BACKENDS, run

ROOT = Path(__file__).resolve().parents[1]
SKELETON = Path(__file__).resolve().parent / "skeleton"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 if jobs failed, 2 if the command cannot be carried out, 130 after Ctrl-C."""
    args = _arguments(argv)
    try:
        if args.experiment is None:
            print(_list(args.root))
            return 0
        if args.experiment == "new":
            print(_new(args.root, args.name))
            return 0
        return _experiment(args)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the rows so far are kept, and the same command goes on", file=sys.stderr)
        return 130


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m scripts.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="name of its folder; `new` starts one; left out: list them")
    parser.add_argument("name", nargs="?", help="after `new`: the name of the new experiment")
    parser.add_argument("--section", default=REPORT, help="section of config.yaml (default: report)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="print the tables from the rows there are, and run nothing")
    what.add_argument("--status", action="store_true", help="print how far the jobs are, and run nothing")
    chosen = parser.add_argument_group("which jobs (also for --table and --status)")
    chosen.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
        help="jobs with this value; several values of one field are alternatives",
    )  # fmt: skip
    chosen.add_argument("--seeds", type=int, metavar="N", help="the first N seeds of the section")
    how = parser.add_argument_group("how they run")
    how.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time, one thread each (default: all cores)"
    )
    how.add_argument(
        "--backend",
        choices=BACKENDS,
        default="loky",
        help="loky: processes here (default); ray: Ray, here or at RAY_ADDRESS",
    )
    how.add_argument("--retry", action="store_true", help="also run the jobs that failed")
    how.add_argument(
        "--budget", type=float, default=math.inf, metavar="HOURS",
        help="start no job after so many machine hours (hours times workers)",
    )  # fmt: skip
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT,
        metavar="FOLDER",
        help="folder of the experiments (default: scripts/reproduce)",
    )
    args = parser.parse_args(argv)
    if (args.experiment == "new") != (args.name is not None):
        parser.error("`new NAME` starts an experiment; elsewhere one name is enough, see --only")
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: at least 1")
    if not args.budget > 0:
        parser.error(f"--budget {args.budget}: more than 0 machine hours")
    args.root = args.root.resolve()
    return args


def _experiment(args: argparse.Namespace) -> int:
    whole = section(args.root / args.experiment, args.section)
    chosen = whole.first_seeds(args.seeds) if args.seeds is not None else whole
    chosen = chosen.only(args.only)
    state = progress(chosen)
    if args.status:
        print(state.status())
        return 0
    if args.table:
        if not state.done:
            raise ExperimentError(f"--table: {chosen.results} has no rows of these jobs yet; run them first")
        print(state.tables(), end="")
        return 0
    todo = [*state.left, *state.to_retry()] if args.retry else state.left
    failed = 0
    if todo:
        _check(chosen)
        workers = int(min(args.workers, chosen.workers))
        failed = run(chosen, todo, workers, args.backend, args.budget)
    print(progress(chosen).status())
    state = progress(whole)
    if state.done and not state.left:
        write_page(state)
        print(f"tables: {whole.page}")
    return 1 if failed else 0


def _check(chosen: Section) -> None:
    check = getattr(load(chosen.folder), "check", None)
    try:
        if check:
            check(chosen.jobs, chosen.settings)
    except ValueError as error:
        raise ExperimentError(f"{chosen.folder.name}: {error}") from None


def _list(root: Path) -> str:
    lines = []
    for file in sorted(root.glob("*/config.yaml")):
        for name in sections(file.parent):
            state = progress(section(file.parent, name))
            lines.append(f"{file.parent.name:20} {name:10} {len(state.done)} of {len(state.section.jobs)} jobs done")
    return "\n".join([*lines, "--help says what can be done with them"])


def _new(root: Path, name: str) -> str:
    folder = root / name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "new":
        raise ExperimentError(f"new {name!r}: small letters, digits and _, beginning with a letter, and not `new`")
    if folder.exists():
        raise ExperimentError(f"new {name!r}: {folder} is there already; choose another name")
    shutil.copytree(SKELETON, folder, ignore=shutil.ignore_patterns("__pycache__"))
    readme = folder / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("NAME", name), encoding="utf-8")
    return f"{folder}: python -m scripts.reproduce {name}"


if __name__ == "__main__":
    sys.exit(main())
