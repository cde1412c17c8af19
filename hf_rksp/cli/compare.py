"""``rksp compare``: two reports side by side."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import add_json_option, new_parser
from hf_rksp.cli.output import check_json_target, number, table, write_json


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "compare",
        "two reports side by side",
        "Compare the means over layers of two reports, with the standard error of each difference, and name the settings "
        "that differ.",
        "rksp compare rksp_gpt2 rksp_gpt2-medium",
    )
    parser.add_argument("first", metavar="A", help="report.json, or the folder that holds it")
    parser.add_argument("second", metavar="B", help="the same, for the second report")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the differences B - A."""
    from hf_rksp.compare import compare_profiles
    from hf_rksp.report import read_report

    check_json_target(args.json)
    first, second = (read_report(_report_file(name)) for name in (args.first, args.second))
    comparison = compare_profiles(first.profile, second.profile)
    if args.json:
        write_json(dataclasses.asdict(comparison) | {"bands": [first.verdict.band, second.verdict.band]}, args.json)
    if args.json != "-":
        rows = [
            [
                d.quantity,
                number(d.first),
                number(d.second),
                number(d.difference),
                number(d.standard_error),
                {True: "yes", False: "no", None: "unknown"}[d.distinct],
            ]
            for d in comparison.differences
        ]
        for letter, audit in (("A", first), ("B", second)):
            band = audit.verdict.band.replace("_", " ")
            print(f"{letter}: {audit.profile.model['name']}, by the paper's thresholds {band}")
        print()
        print(table(["mean over layers", "A", "B", "B - A", "± s.e.", "beyond 2 s.e."], rows))
        for caveat in comparison.caveats:
            print(f"caveat: {caveat}")
    return exit_codes.OK


def _report_file(name: str) -> Path:
    path = Path(name)
    return path / "report.json" if path.is_dir() else path
