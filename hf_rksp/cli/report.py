"""``rksp report``: render a report.json again."""

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
        "render a report.json as Markdown and HTML",
        "Render report.md (with its figures) and report.html from a report.json; nothing is computed again.",
        "rksp report rksp_gpt2/report.json --out site/gpt2",
    )
    parser.add_argument("file", metavar="FILE.json", help="a report.json of `rksp audit`")
    parser.add_argument("--out", metavar="FOLDER", help="where to (default: the folder of the file)")
    parser.add_argument(
        "--formats", default="md,html", metavar="LIST", help="which of json,md,html to write (default: md,html)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the paths of the files as JSON to FILE; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and name them."""
    from hf_rksp.files import check_writable
    from hf_rksp.report import audit_to_dict, read_report, write_report

    wanted = formats(args)
    path = Path(args.file)
    data = audit_to_dict(read_report(path))
    folder = Path(args.out) if args.out else path.parent
    check_json_target(args.json)
    check_writable(folder)
    paths = {name: str(written) for name, written in write_report(data, folder, wanted).items()}
    if args.json:
        write_json(paths, args.json)
    if args.json != "-":
        for written in paths.values():
            print(f"wrote {written}")
    return exit_codes.OK
