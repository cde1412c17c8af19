"""A Kolmogorov-Arnold layer: a learnable spline on every edge (Liu et al., arXiv:2404.19756, Eq. 2.10).

Our own, because none of the libraries fits a transformer: pykan evaluates every edge by itself and keeps a grid for each;
the fast ones replace B-splines by radial functions, which is another model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def b_splines(x: Tensor, intervals: int, order: int, reach: float) -> Tensor:
    """All B-splines on a uniform grid, at ``x``, by the recursion of Cox and de Boor.

    Args:
        x: any shape.
        intervals: of the grid on [-reach, reach]; it is continued by ``order - 1`` intervals on either side.
        order: degree + 1; 4 is cubic.
        reach: the splines sum to 1 on [-reach, reach] and fall to 0 beyond.

    Returns:
        ``(*x.shape, intervals + order - 1)``.
    """
    width = 2 * reach / intervals
    # In units of intervals, knot i at i: every step of the recursion is the same for all splines.
    place = ((x + reach) / width + (order - 1)).unsqueeze(-1)
    knots = torch.arange(intervals + 2 * (order - 1), device=x.device, dtype=x.dtype)
    basis = ((place >= knots) & (place < knots + 1)).to(x.dtype)
    for degree in range(1, order):
        left, right = knots[:-degree], knots[:-degree] + degree + 1
        basis = ((place - left) * basis[..., :-1] + (right - place) * basis[..., 1:]) / degree
    return basis


class KanLinear(nn.Module):
    """y_j = sum_i w_ji silu(x_i) + sum_i sum_m c_jim B_m(x_i).

    Attributes:
        base_weight: ``(out, in)``, w. spline_weight: ``(out, in * (intervals + order - 1))``, c.
    """

    def __init__(self, inputs: int, outputs: int, intervals: int, order: int, reach: float) -> None:
        super().__init__()
        self.intervals, self.order, self.reach = intervals, order, reach
        self.base_weight = nn.Parameter(torch.empty(outputs, inputs))
        self.spline_weight = nn.Parameter(torch.empty(outputs, inputs * (intervals + order - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        # In float32 at least: the recursion takes differences, for which bfloat16 has too few digits.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        basis = b_splines(wide, self.intervals, self.order, self.reach).to(x.dtype).flatten(-2)
        return functional.linear(functional.silu(x), self.base_weight) + functional.linear(basis, self.spline_weight)
