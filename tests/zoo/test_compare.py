"""What is computed for the comparison with the paper, against numbers that are known."""

import pytest
import torch
from torch import nn

from hf_rksp import profile_model
from hf_rksp.report import profile_to_dict
from hf_rksp.zoo.pages.paper_comparison import without_residual


class Residual(nn.Module):
    """One block, x + x W."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x + x @ self.weight


def test_eigenvalues_without_the_residual_path_are_those_of_f():
    """f is linear here, so that its map, and what the quantities are, is known beforehand."""
    torch.manual_seed(0)
    weights = [torch.randn(8, 8, dtype=torch.float64) * scale for scale in (0.15, 0.5)]
    model = nn.Sequential(*map(Residual, weights))
    data = profile_to_dict(profile_model(model, [torch.randn(8, 40, 8).double()], blocks="", groups=0, progress=False))
    moduli = [torch.linalg.eigvals(weight).abs() for weight in weights]
    shares = {
        "near_unit_mass": lambda m: (m >= 0.9) & (m <= 1.05),
        "expansive_mass": lambda m: m > 1.05,
        "contractive_mass": lambda m: m < 0.8,
    }
    for name, inside in shares.items():
        wanted = sum(inside(m).double().mean().item() for m in moduli) / 2
        assert without_residual(data, name) == pytest.approx(wanted)
    assert without_residual(data, "spectral_radius") == pytest.approx(sum(m.max().item() for m in moduli) / 2)
    assert without_residual(data, "nonlinearity_ratio") is None
    assert 0 < without_residual(data, "contractive_mass") < 1  # else the shares above show nothing
