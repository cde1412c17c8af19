"""``rksp timeline``: training runs as one page, drawn over their steps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import new_parser
from hf_rksp.cli.output import check_json_target, say_note, write_json


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "timeline",
        "draw training runs over their steps",
        "Render one HTML page from the histories of training runs: what happened at which step, loss and gradient norm, "
        "everything that was measured by layer and step, and the eigenvalues as a movie. Several runs share the same axes. "
        "Nothing is computed again.",
        "rksp timeline runs/without_kss runs/with_kss --out runs.html",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a .jsonl history, or the folder of a run that holds rksp_history.jsonl (of several, the one written last)",
    )
    parser.add_argument(
        "--out", default="rksp_timeline.html", metavar="FILE.html", help="the page (default: rksp_timeline.html)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the path of the page as JSON to FILE; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and name it."""
    from hf_rksp.history.read import histories_in
    from hf_rksp.report import read_history, write_timeline

    for path in map(Path, args.runs):
        others = histories_in(path)[:-1] if path.is_dir() else []
        if others:
            newest = histories_in(path)[-1].name
            say_note(
                f"{path} holds {len(others) + 1} histories; {newest} was written last and is drawn. Pass a file for another"
            )
    histories = [read_history(Path(path)) for path in args.runs]
    check_json_target(args.json)
    written = write_timeline(histories, args.out)
    if args.json:
        write_json({"html": str(written)}, args.json)
    if args.json != "-":
        print(f"wrote {written}")
    return exit_codes.OK
