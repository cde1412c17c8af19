"""How often the 95% intervals of a profile cover what they are about, on data whose distribution is known.

    python scripts/coverage/run.py > scripts/coverage/result.txt

A residual layer ``y = x + tanh(W x) + 0.3 noise``, x standard normal, sampled anew many times; 8 groups each. The truth of an
interval is the mean of the estimate over all samples of the same size, so the bias of few tokens is left out (it is
printed apart for the nonlinearity ratio, against 200,000 tokens). "error / spread" is the mean standard error over the
standard deviation of the estimate between samples; "plain" is the same for a jackknife of the hard-edged count.
"""

import torch

from hf_rksp.config import SpectralConfig
from hf_rksp.profile.layer import profile_layer
from hf_rksp.spectral import SecondMoments, leave_one_out, spectral_masses, spectrum, standard_error, whitened_dmd

CONFIG, GROUPS, SAMPLES = SpectralConfig(), 8, 60
QUANTITIES = ("near_unit_mass", "expansive_mass", "spectral_radius", "nonlinearity_ratio", "henrici_departure")


def sample(d: int, n: int, seed: int) -> list[SecondMoments]:
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(10**6 + d), dtype=torch.float64) / (2 * d**0.5)
    g = torch.Generator().manual_seed(seed)
    groups = []
    for _ in range(GROUPS):
        x = torch.randn(n // GROUPS, d, generator=g, dtype=torch.float64)
        noise = torch.randn(n // GROUPS, d, generator=g, dtype=torch.float64)
        groups.append(SecondMoments(d))
        groups[-1].update(x, x + torch.tanh(x @ mixing) + 0.3 * noise)
    return groups


def plain_error(groups: list[SecondMoments], name: str, rank: int) -> float:
    values = []
    for rest in leave_one_out(groups):
        eigenvalues = torch.linalg.eigvals(whitened_dmd(rest, rank, CONFIG, check_tokens=False).matrix)
        values.append(getattr(spectral_masses(eigenvalues, CONFIG), name))
    return standard_error(values)


print(
    f"{'d':>4s}{'N':>6s}  {'quantity':20s}{'mean':>8s}{'spread':>8s}{'error / spread':>16s}{'plain':>8s}{'coverage':>10s}"
)
for d, n in ((16, 1024), (48, 1024), (96, 512), (160, 2048)):
    runs = [sample(d, n, seed) for seed in range(SAMPLES)]
    layers = [
        profile_layer(g, stack="s", index=0, depth=0.0, path="s.0", rank="auto", standard_errors=True, config=CONFIG)
        for g in runs
    ]
    for name in QUANTITIES:
        values = torch.tensor([getattr(layer, name) for layer in layers], dtype=torch.float64)
        errors = torch.tensor([layer.standard_errors[name] for layer in layers], dtype=torch.float64)
        centre, spread = float(values.mean()), float(values.std())
        covered = sum(layer.intervals[name][0] <= centre <= layer.intervals[name][1] for layer in layers) / SAMPLES
        plain = ""
        if name.endswith("_mass"):
            plain = f"{sum(plain_error(g, name, d) for g in runs) / SAMPLES / spread:.2f}"
        print(
            f"{d:4d}{n:6d}  {name:20s}{centre:8.3f}{spread:8.4f}{float(errors.mean()) / spread:16.2f}{plain:>8s}{covered:10.2f}",
            flush=True,
        )
    large = SecondMoments(d)
    for seed in range(10):
        for group in sample(d, 20_000, 999 + seed):
            large.merge(group)
    truth = spectrum(whitened_dmd(large), CONFIG, kreiss=False).nonlinearity_ratio
    mean = sum(layer.nonlinearity_ratio for layer in layers) / SAMPLES
    shrink = (1 - d / n) ** 0.5
    print(
        f"{d:4d}{n:6d}  nonlinearity ratio: {mean:.3f} here, {truth:.3f} with 200,000 tokens; sqrt(1 - d/N) = {shrink:.3f}"
    )
