"""Run `rksp zoo run` with the manifest of a family, for the audit_*.py scripts, in the zoo of this clone."""

import sys
from pathlib import Path
from typing import NoReturn

from hf_rksp.cli.main import main

ZOO = Path(__file__).resolve().parent.parent / "zoo_reports"


def run(family: str) -> NoReturn:
    """Audit ``family`` with the arguments of the script, and exit."""
    sys.exit(main(["zoo", "run", str(ZOO / "manifests" / f"{family}.json"), "--folder", str(ZOO), *sys.argv[1:]]))
