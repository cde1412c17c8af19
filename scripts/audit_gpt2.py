"""Audit the GPT-2 of the zoo: `rksp zoo run` with their manifest. Options: `--help`."""

import sys
from pathlib import Path

from hf_rksp.cli.main import main

ZOO = Path(__file__).resolve().parent.parent / "zoo_reports"

if __name__ == "__main__":
    sys.exit(main(["zoo", "run", str(ZOO / "manifests" / "gpt2.json"), "--folder", str(ZOO), *sys.argv[1:]]))
