"""What a reading of each monitor costs: turns of steps that are all read and turns of steps that are not.

    make bench          # or: python scripts/bench/monitors.py [--quick] [--device cuda] [--json monitors.json]

GPT-2 of several sizes on random tokens, float32, AdamW, a loop of its own. A turn is a few steps of the same model, with a reading
in every step or without any; the order changes from pair to pair. The cost of a reading is the median over the pairs of the
difference of their medians, with a 95% interval (of the median, from the order statistics). At one reading in ten steps a tenth
of it is added to a step. Readings of several monitors in one step share their hooks, so the sum of the costs is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats
from training import Tokens, network

from hf_rksp import (
    AlignmentConfig,
    AlignmentMonitor,
    AttentionConfig,
    AttentionMonitor,
    CurvatureConfig,
    CurvatureMonitor,
    DivergenceGuard,
    GuardConfig,
    MonitorConfig,
    SpectralMonitor,
    TrainingRun,
)
from hf_rksp.machine import describe_machine, peak_memory, versions
from hf_rksp.training import host
from hf_rksp.training.monitors.base import Monitor

#: width, layers, sequences, tokens of each
SIZES = [(128, 4, 8, 64), (256, 4, 8, 64), (512, 4, 8, 64), (768, 12, 4, 128)]
QUICK = [(128, 4, 8, 64), (256, 4, 8, 64)]
#: As people train on a GPU.
LARGE = [(768, 12, 8, 1024), (1600, 24, 4, 1024)]
PAIRS, STEPS = 7, 3
#: Most that each monitor, and all together, may add to a step from width 512 on.
TARGET, TOGETHER = 0.02, 0.05


@dataclass(frozen=True)
class Case:
    """A monitor that reads in every step, the steps from one reading to the next that its overhead is stated for, and pairs."""

    make: Callable[[], Monitor]
    every: int
    pairs: int = PAIRS
    largest: int = 10**6


CASES = {
    "alignment": Case(lambda: AlignmentMonitor(AlignmentConfig(every=1)), 10),
    "attention": Case(lambda: AttentionMonitor(AttentionConfig(every=1)), 10),
    "spectrum": Case(lambda: SpectralMonitor(MonitorConfig(every=1)), 500),
    # A reading is as long as about ten steps, and the first one of each turn as long as a hundred: few pairs, and not the largest.
    "curvature": Case(lambda: CurvatureMonitor(CurvatureConfig(every=1)), 500, 3, 512),
    "guard": Case(DivergenceGuard, 1),
    # Instead of the one that warns, so it is not in the sum.
    "guard that acts": Case(lambda: DivergenceGuard(GuardConfig("skip")), 1),
}


def turn(model: torch.nn.Module, ids: torch.Tensor, monitors: list[Monitor], steps: int) -> tuple[list[float], int]:
    """Seconds of each step but the first, and how often one waited for the device."""
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-5), []
    with (
        tempfile.TemporaryDirectory() as folder,
        TrainingRun(model, folder, 10**6, monitors, optimizer=optimizer) as run,
    ):
        moves = host.moves
        for _ in range(steps + 1):
            if ids.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            run.gradients_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
            if ids.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        moves = host.moves - moves
    return seconds[1:], moves // (steps + 1)


def measure(make: Callable[[], Monitor], size: tuple[int, ...], pairs: int, device: str) -> dict[str, object]:
    """Turns with readings and turns without."""
    width, layers, batch, length = size
    model = network(width, layers, length).to(device).train()
    ids = Tokens(batch, length).ids.to(device)
    medians: dict[bool, list[float]] = {False: [], True: []}
    moves = 0
    for pair in range(pairs + 1):
        for read in (False, True) if pair % 2 else (True, False):
            seconds, moved = turn(model, ids, [make()] if read else [], STEPS)
            medians[read].append(statistics.median(seconds))
            moves = max(moves, moved)
    plain = statistics.median(medians[False][1:])
    costs = sorted(read - without for without, read in zip(medians[False][1:], medians[True][1:], strict=True))
    low, high = (int(stats.binom.ppf(q, pairs, 0.5)) for q in (0.025, 0.975))
    return {
        "size": size,
        "plain": plain,
        "reading": statistics.median(costs),
        "interval": [costs[low], costs[min(high, pairs - 1)]],
        "moves": moves,
        "medians": {"plain": medians[False], "reading": medians[True]},
    }


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; a GPU gets larger networks")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="some of the parts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = QUICK if args.quick else LARGE if args.device != "cpu" else SIZES
    machine = describe_machine()
    where = ", ".join(machine["cuda_devices"]) if args.device != "cpu" else f"{machine['cores']} cores"
    print(f"{machine['system']} {machine['architecture']}, {where}, torch {versions()['torch']}")
    rows = []
    added_by: dict[int, dict[str, float]] = {}
    for name in args.only:
        case = CASES[name]
        print(f"{name}: cost of a reading [95% interval], and what one reading in {case.every} steps adds to a step")
        print(f"{'d':>5} {'layers':>6} {'tokens':>6} {'step':>9} {'reading':>28} {'added':>7} {'host syncs':>10}")
        for size in (one for one in sizes if one[0] <= case.largest or args.device != "cpu"):
            row = measure(case.make, size, min(case.pairs, 3 if args.quick else PAIRS), args.device) | {"monitor": name}
            rows.append(row)
            plain, reading, (low, high) = row["plain"], row["reading"], row["interval"]
            added = reading / plain / case.every
            if name != "guard that acts":
                added_by.setdefault(size[0], {})[name] = added
            verdict = "" if size[0] < 512 else "  target met" if added <= TARGET else f"  target {TARGET:.0%} MISSED"
            cost = f"{1e3 * reading:.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}]"
            print(
                f"{size[0]:>5} {size[1]:>6} {size[2] * size[3]:>6} {1e3 * plain:>6.1f} ms {cost:>28} {added:>7.1%} "
                f"{row['moves']:>10}{verdict}"
            )
    if len(args.only) == len(CASES):
        print("all of them at these intervals, as the sum of their costs:")
    for width, parts in added_by.items() if len(args.only) == len(CASES) else ():
        total = sum(parts.values())
        verdict = "" if width < 512 else "  target met" if total <= TOGETHER else f"  target {TOGETHER:.0%} MISSED"
        missing = sorted(CASES.keys() - parts.keys() - {"guard that acts"})
        without = f" (without {', '.join(missing)})" if missing else ""
        print(f"{width:>5} {total:>7.1%}{without}{verdict}")
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
