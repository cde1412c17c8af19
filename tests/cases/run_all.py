"""Run the cases one after the other, each in a process of its own with 120 seconds, and count.

python run_all.py            # all
python run_all.py p06 a1     # those whose file name starts so
"""

import subprocess
import sys
import time
from pathlib import Path

LIMIT = 120


def main() -> int:
    here = Path(__file__).resolve().parent
    wanted = tuple(name.lower() for name in sys.argv[1:])
    files = [f for f in sorted(here.glob("*.py")) if f.name not in ("common.py", "run_all.py")]
    files = [f for f in files if not wanted or f.name.startswith(wanted)]
    results = []
    for file in files:
        begin = time.monotonic()
        try:
            done = subprocess.run([sys.executable, str(file)], cwd=here, capture_output=True, text=True, timeout=LIMIT)
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            line = lines[-1] if lines else (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
            outcome = "PASS" if done.returncode == 0 and line.startswith("PASS") else "FAIL"
        except subprocess.TimeoutExpired:
            outcome, line = "TIME", f"not done after {LIMIT} s"
        seen = line.split(": ", 1)[-1] if outcome != "PASS" else ""
        print(f"{outcome}  {file.stem:44s} {time.monotonic() - begin:5.0f} s  {seen[:150]}", flush=True)
        results.append(outcome)
    print(f"{len(results)} cases: " + ", ".join(f"{results.count(name)} {name}" for name in ("PASS", "FAIL", "TIME")))
    return 0 if all(name == "PASS" for name in results) else 1


if __name__ == "__main__":
    sys.exit(main())
