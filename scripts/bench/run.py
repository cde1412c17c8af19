"""Time and memory of a profile against the floor and a peer, all in one run.

    make bench          # or: python scripts/bench/run.py [--quick] [--json results.json]

The floor of one layer is what no implementation over moments can avoid: three d x d x N products and one nonsymmetric
eigenproblem with vectors in LAPACK. The peer is PyDMD's exact full DMD (svd_rank=-1). Contestants take turns, so a drift of
the machine's speed hits all of them; medians and their ratios are printed. The steps of "all quantities" take turns with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from hf_rksp.machine import versions
from hf_rksp.spectral import (
    SecondMoments,
    eigenvalue_masses,
    kreiss_constant,
    modal_basis,
    spectrum,
    spectrum_for_errors,
    whitened_dmd,
)


def states(d: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual block's worth of data: white inputs, a tanh update."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, x + torch.tanh(x @ torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def moments(x, y, chunk=2048):
    m = SecondMoments(x.shape[1])
    for bx, by in zip(x.split(chunk), y.split(chunk), strict=True):
        m.update(bx, by)
    return m


def one_layer(repeats: int) -> dict:
    import pydmd

    x, y = states(768, 2048)
    xt, yt = x.T.numpy(), y.T.numpy()

    def floor():
        cxx, cyx = x.T @ x, y.T @ x
        torch.linalg.eig(torch.linalg.solve(cxx, cyx.T).T)
        return y.T @ y

    def peer():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydmd.DMD(svd_rank=-1, exact=True).fit(xt, yt).eigs

    def all_quantities(m):
        operator = whitened_dmd(m)
        return spectrum(operator), operator.condition, operator.output_energy

    m = moments(x, y)
    operator = whitened_dmd(m)
    modal = modal_basis(operator.matrix)
    condition = modal.condition
    contestants = {
        "floor: 3 products + eig": floor,
        "hf_rksp: masses and radius": lambda: eigenvalue_masses(whitened_dmd(moments(x, y))),
        "hf_rksp: all quantities": lambda: all_quantities(moments(x, y)),
        "PyDMD: exact full DMD": peer,
        "step: moments": lambda: moments(x, y),
        "step: whitened operator": lambda: whitened_dmd(m),
        "step: its condition": lambda: operator.condition,
        "step: eigenvectors": lambda: torch.linalg.eig(operator.matrix),
        "step: with their inverse": lambda: modal_basis(operator.matrix),
        "step: their condition": lambda: modal.condition,
        "step: residuals": lambda: (modal.left_quadratic(operator.quadratic_y), modal.left_norms()),
        "step: Kreiss bracket": lambda: kreiss_constant(operator.matrix, modal, condition),
        "jackknife: one replicate": lambda: spectrum_for_errors(whitened_dmd(m)),
        "  its eigenvalues": lambda: torch.linalg.eigvals(operator.matrix),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, function in contestants.items():
            spent = seconds(function)
            if turn:  # the first turn warms up
                times[name].append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    pydmd_time, floor_time = median["PyDMD: exact full DMD"], median["floor: 3 products + eig"]
    masses, everything = median["hf_rksp: masses and radius"], median["hf_rksp: all quantities"]
    print(f"one layer, d=768, N=2048, float64, {torch.get_num_threads()} threads, median of {repeats} (min to max)")
    for name, values in times.items():
        print(
            f"  {name:28s} {median[name]:7.3f} s  ({min(values):.3f} to {max(values):.3f})"
            f"  {median[name] / floor_time:5.2f} x floor"
        )
    checks = {
        "PyDMD / masses and radius": (pydmd_time / masses, 3.5, ">="),
        "PyDMD / all quantities": (pydmd_time / everything, 1.6, ">="),
        "all quantities / floor": (everything / floor_time, 1.25, "<="),
    }
    for name, (value, target, sense) in checks.items():
        met = value >= target if sense == ">=" else value <= target
        print(f"  {name:28s} {value:7.2f}    target {sense} {target}: {'met' if met else 'MISSED'}")
    return {"seconds": times, "ratios": {name: value for name, (value, _, _) in checks.items()}}


def growth(dims: list[int], counts: list[int]) -> list[dict]:
    print("\ngrowth: moments (streamed in chunks of 2048) by d and N, and all quantities from them by d; seconds")
    print(
        "     d "
        + "".join(f"{f'N={n // 1024}k':>10s}" for n in counts)
        + f"{'ns/token':>10s}{'operator':>10s}{'spectrum':>10s}"
    )
    rows = []
    for d in dims:
        spent = []
        for n in counts:
            x, y = states(d, min(n, 8192))
            repeats = n // x.shape[0]
            m = SecondMoments(d)
            start = time.perf_counter()
            for _ in range(repeats):  # the cost of a token does not depend on its value
                for bx, by in zip(x.split(2048), y.split(2048), strict=True):
                    m.update(bx, by)
            spent.append(time.perf_counter() - start)
        m = moments(*states(d, 4 * d))
        start = time.perf_counter()
        operator = whitened_dmd(m)
        middle = time.perf_counter()
        spectrum(operator), operator.condition
        end = time.perf_counter()
        rows.append(
            {
                "d": d,
                "moments": dict(zip(counts, spent, strict=True)),
                "operator": middle - start,
                "spectrum": end - middle,
            }
        )
        cells = "".join(f"{t:10.3f}" for t in spent)
        print(
            f"{d:6d} {cells}{1e9 * spent[-1] / counts[-1]:10.0f}{middle - start:10.3f}{end - middle:10.3f}", flush=True
        )
    return rows


def whole_audit(layers: tuple[int, ...]) -> list[dict]:
    print("\nwhole audit: rksp audit --init gpt2 (124M, 2048 tokens, full rank, 8 jackknife groups), new process each")
    rows = []
    for n in layers:
        command = [sys.executable, "-m", "hf_rksp.cli.main", "audit", "--init", "gpt2", "--quiet", "--json", "-"]
        if n != 12:
            command += ["--config-overrides", f"n_layer={n}"]
        start = time.perf_counter()
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        wall = time.perf_counter() - start
        cost = json.loads(out)["profile"]["cost"]
        parts = {name: cost["seconds"][name] for name in ("forward", "moments", "spectra")}
        total = sum(parts.values())
        shares = ", ".join(f"{name} {value:.1f} s ({value / total:.0%})" for name, value in parts.items())
        peak = cost["peak_memory_bytes"] / 2**30
        print(
            f"  {n:2d} layers: wall {wall:6.1f} s; {shares}; {total / n:.2f} s a layer; peak memory {peak:.2f} GiB",
            flush=True,
        )
        rows.append({"layers": n, "wall": wall, "seconds": parts, "peak_memory_bytes": cost["peak_memory_bytes"]})
    met = rows[-1]["peak_memory_bytes"] <= 2.5 * 2**30
    print(f"  peak memory target <= 2.5 GiB: {'met' if met else 'MISSED'}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only, no whole audit")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns of the single layer (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the raw numbers here")
    args = parser.parse_args()
    processor = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    print(
        f"{processor}, {os.cpu_count()} cores, "
        + ", ".join(f"{k} {v}" for k, v in versions().items() if k in ("python", "torch"))
    )
    results = {"machine": {"processor": processor, "cores": os.cpu_count()}, "versions": versions()}
    results["one_layer"] = one_layer(args.repeats)
    dims, counts = (
        ([128, 256], [2048, 8192]) if args.quick else ([128, 256, 512, 768, 1024, 2048], [2048, 8192, 32768, 65536])
    )
    results["growth"] = growth(dims, counts)
    if not args.quick:
        results["whole_audit"] = whole_audit((6, 12))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
