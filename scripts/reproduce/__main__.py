"""`python -m scripts.reproduce`: see harness/cli.py."""

import os
import sys

# One thread a job. Set before torch is imported, here and in the worker processes, which take over this environment.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

if __name__ == "__main__":  # worker processes import this file under another name
    from scripts.reproduce.harness.cli import main

    sys.exit(main())
