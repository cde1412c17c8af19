"""``rksp report``: render a report.json, or the history of a training run, again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import formats, new_parser
from hf_rksp.cli.output import check_json_target, write_json


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "report",
        "render a report.json or a history again",
        "Render report.md (with its figures) and report.html from a report.json, or rksp_report.html from the history of a "
        "training run. Nothing is computed again. `rksp timeline` draws several runs on one page.",
        "rksp report rksp_gpt2/report.json --out site/gpt2",
    )
    parser.add_argument(
        "file", metavar="FILE", help="a report.json of `rksp audit`, or a .jsonl history of a training run"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to (default: the folder of the file)")
    parser.add_argument(
        "--formats",
        default="md,html",
        metavar="LIST",
        help="which of json,md,html to write of a report.json (default: md,html)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the paths of the files as JSON to FILE; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and name them."""
    from hf_rksp.files import check_writable
    from hf_rksp.report import audit_to_dict, read_history, read_report, write_report, write_timeline

    wanted = formats(args)
    path = Path(args.file)
    folder = Path(args.out) if args.out else path.parent
    check_json_target(args.json)
    if path.suffix == ".jsonl":
        history = read_history(path)
        check_writable(folder)
        paths = {"html": str(write_timeline([history], folder / "rksp_report.html"))}
    else:
        data = audit_to_dict(read_report(path))
        check_writable(folder)
        paths = {name: str(written) for name, written in write_report(data, folder, wanted).items()}
    if args.json:
        write_json(paths, args.json)
    if args.json != "-":
        for written in paths.values():
            print(f"wrote {written}")
    return exit_codes.OK
