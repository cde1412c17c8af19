"""What a refresh of the live page of a long run costs: ten more lines are read and the page is drawn again.

    make bench          # or: python scripts/bench/live_page.py [--json live_page.json]

Processor seconds, the median of five refreshes, and the size of the page. Readings have numbers of 24 maps, as Spectral Alignment
has for a network of four blocks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_rksp.history.schema import FILE_NAME, described
from hf_rksp.machine import describe_machine
from hf_rksp.quantities import ALIGNMENT
from hf_rksp.report.run.live import LivePage

#: Logged steps, and steps from one reading to the next.
RUNS = [(20_000, 100), (20_000, 10), (100_000, 500), (100_000, 10)]
MAPS, REFRESHES, LINES, TARGET = 24, 5, 10, 0.5


def rows(steps: int, every: int) -> Iterator[dict[str, Any]]:
    """A history."""
    draw = random.Random(0)
    quantities = described("alignment", ALIGNMENT)
    yield {"kind": "run", "schema_version": 2, "model": {"name": "long"}, "setup": {}, "quantities": quantities}
    for step in range(steps):
        if step % every == 0:
            layers = [
                {"stack": "h", "index": i // 6, "path": f"h.{i // 6}.m{i % 6}"}
                | {q.key: draw.random() for q in ALIGNMENT if q.per_layer}
                for i in range(MAPS)
            ]
            values = {q.key: draw.random() for q in ALIGNMENT if not q.per_layer}
            yield {"kind": "reading", "monitor": "alignment", "step": step, "values": values, "layers": layers}
        yield {
            "kind": "log",
            "step": step + 1,
            "loss": 4 - step / steps,
            "grad_norm": draw.random(),
            "learning_rate": 1e-3,
        }


def measure(steps: int, every: int) -> dict[str, Any]:
    """Seconds of the first page and of a refresh."""
    lines = [json.dumps(row) + "\n" for row in rows(steps, every)]
    cut = len(lines) - REFRESHES * LINES
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE_NAME)
        file.write_text("".join(lines[:cut]))
        page = LivePage([folder])
        seconds = []
        for number in range(REFRESHES + 1):
            start = time.process_time()
            text = page.html() or b""
            seconds.append(time.process_time() - start)
            with file.open("a") as stream:
                stream.writelines(lines[cut + number * LINES : cut + (number + 1) * LINES])
    return {
        "steps": steps,
        "every": every,
        "first": seconds[0],
        "refresh": statistics.median(seconds[1:]),
        "bytes": len(text),
    }


def main() -> None:
    """Print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{'steps':>8} {'readings':>9} {'first page':>11} {'refresh':>9} {'page':>9}")
    found = []
    for steps, every in RUNS:
        row = measure(steps, every)
        found.append(row)
        size, verdict = row["bytes"] / 2**20, f"  target {TARGET:g} s {'met' if row['refresh'] < TARGET else 'MISSED'}"
        print(
            f"{steps:>8,} {steps // every:>9,} {row['first']:>9.2f} s {row['refresh']:>7.2f} s {size:>5.1f} MiB{verdict}"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
