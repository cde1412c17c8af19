"""All experiments in one order: those that say most per machine hour come first.

    python scripts/reproduce/all.py --status              every section: rows done and planned, machine hours, bits per hour
    python scripts/reproduce/all.py --workers 2           run what is left, in that order; Ctrl-C stops, the same command goes on
    python scripts/reproduce/all.py --budget 3            start no job after 3 machine hours

Information is counted in bits: rows that are left make the estimates of a section sharper, and log2(rows planned / rows done) / 2
bits are gained for each claim that the section decides (`claims` in its config.yaml). A section ends with its budget (`hours`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# One thread a job, before torch is imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

from hf_rksp.cli import exit_codes  # noqa: E402
from scripts.reproduce.harness.cli import main as run_section  # noqa: E402
from scripts.reproduce.harness.config import REPORT, section, sections  # noqa: E402
from scripts.reproduce.harness.markdown import table  # noqa: E402
from scripts.reproduce.harness.progress import Progress, progress  # noqa: E402

FOLDER = Path(__file__).resolve().parent


def states(folder: Path = FOLDER) -> list[Progress]:
    """Every section of every experiment: what says most per hour first, and last those of which nobody knows the time."""
    found = [
        progress(section(file.parent, name))
        for file in sorted(folder.glob("*/config.yaml"))
        for name in sections(file.parent)
    ]
    return sorted(found, key=lambda state: -rate(state))


def rate(state: Progress) -> float:
    """Bits per machine hour; 0 if nothing is left or the budget is spent, and next to nothing if no row says how long one takes."""
    if not state.left or state.hours_spent() >= state.section.hours:
        return 0.0
    hours = state.hours_left()
    return 1e-9 if hours is None else state.information_left() / max(hours, 1e-6)


def status(found: list[Progress]) -> str:
    """One line per section, and the sum."""
    lines = []
    for state in found:
        hours, of = state.hours_left(), state.section.hours
        lines.append(
            [
                f"{state.section.folder.name} {'' if state.section.name == REPORT else state.section.name}".strip(),
                f"{len(state.done)} of {len(state.section.jobs)}" + (f" ({len(state.failed)} failed)" if state.failed else ""),
                f"{state.hours_spent():.2f}" + ("" if math.isinf(of) else f" of {of:g}"),
                "0" if not state.left else "?" if hours is None else f"{hours:.2f}",
                "budget spent" if state.left and state.hours_spent() >= of else "-" if not state.left else "?"
                if hours is None else f"{rate(state):.2f}",
            ]
        )  # fmt: skip
    spent = sum(state.hours_spent() for state in found)
    heads = ["section", "rows", "machine hours spent", "machine hours left", "bits per hour"]
    return "\n".join([*table(heads, lines), "", f"{spent:.1f} machine hours spent in all"])


def main(argv: list[str] | None = None) -> int:
    """Exit status: the largest one of the sections; one that fails does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--status", action="store_true", help="print how far every section is, and run nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time, one thread each")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="HOURS", help="machine hours in all")
    args = parser.parse_args(argv)
    found = states()
    if args.status:
        print(status(found))
        return 0
    left, worst = args.budget, 0
    for state in found:
        if rate(state) == 0:
            continue
        before = state.hours_spent()
        most = min(left, state.section.hours - before)
        name = ["--section", state.section.name, "--workers", str(args.workers)]
        limit = [] if math.isinf(most) else ["--budget", str(most)]
        print(f"{state.section.folder.name} {state.section.name}", flush=True)
        code = run_section([state.section.folder.name, *name, *limit])
        if code == exit_codes.INTERRUPTED:
            return code
        worst = max(worst, code)
        left -= progress(section(state.section.folder, state.section.name)).hours_spent() - before
        if left <= 0:
            break
    return worst


if __name__ == "__main__":  # worker processes import this file under another name
    sys.exit(main())
