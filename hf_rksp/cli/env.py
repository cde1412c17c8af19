"""``rksp env``: versions and machine, for bug reports."""

from __future__ import annotations

import argparse
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import new_parser
from hf_rksp.cli.output import write_json


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "env",
        "versions and machine, for bug reports",
        "Print versions and machine. Paste the output into a bug report.",
        "rksp env",
    )
    parser.add_argument("--json", metavar="FILE", help="write as JSON to FILE; - writes it to stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one fact per line."""
    from hf_rksp.machine import describe_machine, versions

    packages, machine = versions(), describe_machine()
    if args.json:
        write_json({"versions": packages, "machine": machine}, args.json)
    if args.json != "-":
        for name, value in [*packages.items(), *machine.items()]:
            print(f"{name}: {value}")
    return exit_codes.OK
