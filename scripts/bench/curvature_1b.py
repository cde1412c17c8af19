"""Time and memory of a curvature reading on growing models, up to one billion parameters on a GPU.

    python scripts/bench/curvature_1b.py                       # small models on a processor
    python scripts/bench/curvature_1b.py --device cuda         # up to 1.1 billion parameters

GPT-2 on random tokens, few of them, so that vectors of the size of the weights are most of the memory. Each model is trained in a
process of its own, with readings and without; the difference of the peaks is stated in vectors of the trainable weights in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from training import Tokens, network

from hf_rksp import CurvatureConfig, CurvatureMonitor, TrainingRun
from hf_rksp.machine import peak_memory

#: width, layers
SIZES = [(512, 4), (768, 8), (1024, 12)]
LARGE = [(1024, 24), (1600, 24), (2048, 20)]
TOKENS, STEPS = 32, 4


def one(width: int, layers: int, device: str, reads: bool) -> dict[str, float]:
    """A few steps; the peak, and the seconds of the last step."""
    model = network(width, layers, TOKENS).to(device).train()
    ids = Tokens(1, TOKENS).ids.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    monitors = [CurvatureMonitor(CurvatureConfig(every=1))] if reads else []
    with (
        tempfile.TemporaryDirectory() as folder,
        TrainingRun(model, folder, 10**6, monitors, optimizer=optimizer) as run,
    ):
        for _ in range(STEPS):
            start = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            # Gradients stay: a run that accumulates has them while a reading is made.
            run.step()
            optimizer.zero_grad(set_to_none=False)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else peak_memory()
    return {"seconds": seconds, "peak": peak, "parameters": sum(weight.numel() for weight in model.parameters())}


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        width, layers, reads = args.one
        print(json.dumps(one(width, layers, args.device, bool(reads))))
        return
    print(f"{'parameters':>12} {'step':>9} {'reading':>9} {'peak':>10} {'with readings':>14} {'vectors':>8}")
    rows = []
    for width, layers in SIZES if args.device == "cpu" else LARGE:
        plain, read = (_started(width, layers, args.device, reads) for reads in (False, True))
        vectors = (read["peak"] - plain["peak"]) / 4 / plain["parameters"]
        rows.append({"width": width, "layers": layers, "plain": plain, "read": read, "vectors": vectors})
        print(
            f"{plain['parameters']:>12,} {plain['seconds']:>7.2f} s {read['seconds'] - plain['seconds']:>7.2f} s "
            f"{plain['peak'] / 2**30:>6.2f} GiB {read['peak'] / 2**30:>10.2f} GiB {vectors:>8.1f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _started(width: int, layers: int, device: str, reads: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--device", device, "--one", str(width), str(layers), str(int(reads))]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    main()
