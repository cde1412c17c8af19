"""An experiment as one script: `run.py` in its folder runs what has no row yet, and ends with the tables."""

from __future__ import annotations

import os
import sys


def run_and_print(name: str) -> int:
    """The commands NAME and NAME --table one after the other; further arguments go to the first, and --section to both."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    from scripts.reproduce.harness.cli import main  # torch reads the variables when it is imported

    given = sys.argv[1:]
    place = given.index("--section") if "--section" in given else len(given)
    status = main([name, *given])
    return status or main([name, *given[place : place + 2], "--table"])
