"""`python scripts/reproduce/architecture_warmup/run.py`: run what has no row yet, then print the tables."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from scripts.reproduce.harness.script import run_and_print  # the repository is on the path now

sys.exit(run_and_print(Path(__file__).parent.name))
