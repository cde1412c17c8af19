"""Eigenvector condition of random matrices by size: what kappa(V) is without any structure.

    python scripts/random_matrices/run.py > scripts/random_matrices/result.txt

Matrices with independent standard normal entries (real Ginibre), seeds 0 to n-1. The threshold
`RiskConfig.large_eigenvector_condition` is set well above the largest value of this table.
"""

import statistics

import torch

from hf_rksp.spectral import modal_basis

print(f"{'size':>6s}{'seeds':>7s}{'median':>10s}{'min':>10s}{'max':>10s}")
for size, seeds in ((32, 50), (128, 50), (384, 20), (768, 20), (1024, 10), (2048, 5)):
    values = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        values.append(modal_basis(torch.randn(size, size, generator=g, dtype=torch.float64)).condition)
    print(f"{size:6d}{seeds:7d}{statistics.median(values):10.0f}{min(values):10.0f}{max(values):10.0f}", flush=True)
