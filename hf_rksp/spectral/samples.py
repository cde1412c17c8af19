"""Few tokens in many dimensions: the same second moments, in the span of the samples.

With N tokens of width d > N, every x lies in a subspace of at most N dimensions, and nothing that `whitened_dmd` computes
looks outside it but the variance of y. In coordinates of that subspace the moments have N^2 numbers in place of d^2, and the
eigenproblem costs N^3: at d = 4096 and N = 2048 an eighth of the time and a quarter of the memory, to rounding the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_rksp.errors import InputError
from hf_rksp.spectral.moments import SecondMoments, not_finite


class GroupedMoments(list[SecondMoments]):
    """Second moments of each group of sequences."""

    def __init__(self, dim: int, groups: int, device: torch.device | str = "cpu") -> None:
        super().__init__(SecondMoments(dim, device) for _ in range(groups))

    def update(self, group: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Add a batch to a group; see `SecondMoments.update`."""
        self[group].update(x, y, mask)

    @property
    def tokens(self) -> int:
        """Rows that were added."""
        return sum(part.count for part in self)


class GroupedSamples:
    """The pairs themselves while there are at most ``dim`` of them; beyond that, `GroupedMoments`.

    Attributes:
        dim: width of the states.
        groups: number of groups of sequences.
        tokens: rows that were added.
    """

    def __init__(self, dim: int, groups: int, device: torch.device | str = "cpu") -> None:
        self.dim, self.groups, self.tokens, self.device = dim, groups, 0, torch.device(device)
        self._pairs: list[list[tuple[Tensor, Tensor]]] | None = [[] for _ in range(groups)]
        self._moments: GroupedMoments | None = None

    def update(self, group: int, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Add a batch to a group.

        Args:
            group: from 0.
            x, y: states before and after the block, shape ``(..., d)``.
            mask: shape ``(...)``, nonzero for rows that count.

        Raises:
            NonFiniteError: a counted row holds NaN or inf; nothing is added.
            InputError: the widths do not fit.
        """
        if self._moments is not None:
            before = self._moments[group].count
            self._moments.update(group, x, y, mask)
            self.tokens += self._moments[group].count - before
            return
        if x.shape != y.shape or x.shape[-1] != self.dim:
            raise InputError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass states of width {self.dim}")
        rows_x, rows_y = x.detach().reshape(-1, self.dim), y.detach().reshape(-1, self.dim)
        if mask is not None:
            keep = (mask != 0).reshape(-1).to(rows_x.device)
            rows_x, rows_y = rows_x[keep], rows_y[keep]
        for name, rows in (("x", rows_x), ("y", rows_y)):
            if not torch.isfinite(rows).all():
                raise not_finite(name, rows)
        assert self._pairs is not None
        # Copies: a later block may write into its input, and a slice would keep the whole batch alive.
        self._pairs[group].append((rows_x.to(self.device, copy=True), rows_y.to(self.device, copy=True)))
        self.tokens += rows_x.shape[0]
        if self.tokens > self.dim:
            self._sum_up()

    def merge_processes(self, gather: Callable[[Any], list[Any]]) -> None:
        """Add the samples of the other processes of `torch.distributed`, in their order; every process has to call it.

        Args:
            gather: returns the arguments of all processes, in order.
        """
        tokens = sum(gather(self.tokens))
        if tokens <= self.dim:
            # On the processor: a tensor arrives on the device that it left.
            kept = gather([[(x.cpu(), y.cpu()) for x, y in parts] for parts in self._pairs or []])
            self._pairs = [[pair for part in kept for pair in part[group]] for group in range(self.groups)]
        else:
            self._sum_up()
            assert self._moments is not None
            for part in self._moments:
                part.all_reduce()
        self.tokens = tokens

    def _sum_up(self) -> None:
        """Moments in place of the pairs."""
        if self._moments is None:
            pairs, self._pairs = self._pairs or [], None
            self._moments = GroupedMoments(self.dim, self.groups, self.device)
            for number, parts in enumerate(pairs):
                for x, y in parts:
                    self._moments.update(number, x, y, None)

    def moments(self) -> list[SecondMoments]:
        """The moments of each group that has rows. The stored samples are released."""
        if self._moments is not None:
            return [part.cpu() for part in self._moments if part.count]
        pairs, self._pairs = self._pairs or [], []
        filled = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in pairs if parts]
        filled = [(x, y) for x, y in filled if len(x)]
        if not filled:
            return []
        del pairs
        sizes = [len(x) for x, _ in filled]
        # One after the other: at d = 4096 each of these is 67 MB.
        x = _centred([x for x, _ in filled])
        if x is None:  # constant states have no span; `whitened_dmd` says so
            plain = GroupedMoments(self.dim, len(sizes))
            for number, (part_x, part_y) in enumerate(filled):
                plain.update(number, part_x.cpu(), part_y.cpu(), None)
            return plain
        rows_y = [y for _, y in filled]
        del filled
        basis, triangle = torch.linalg.qr(x.T)  # (d, N) and (N, N)
        del x
        y = _centred(rows_y, always=True)
        assert y is not None
        del rows_y
        inside_x, inside_y = triangle.T, y @ basis
        outside = (y.square_().sum(1) - inside_y.square().sum(1)).clamp_min(0)
        width, span = basis.shape
        del basis, y
        reduced = []
        parts = zip(*(torch.split(part, sizes) for part in (inside_x, inside_y, outside)), strict=True)
        for part_x, part_y, rest in parts:
            group = SecondMoments(span, width=width, outside_y=float(rest.sum()))
            group.update(part_x, part_y)
            reduced.append(group)
        return reduced


def _centred(parts: list[Tensor], always: bool = False) -> Tensor | None:
    """All rows in float64, less their mean; ``None`` if they are all equal but for rounding."""
    rows = torch.cat(parts).to("cpu", torch.float64, copy=True)
    mean = rows.mean(0)
    rows -= mean
    floor = torch.finfo(torch.float64).eps * mean.abs().max()  # what rounding leaves of a mean
    varies = max(float(part.square().mean(0).max()) for part in torch.split(rows, 256)) > float(floor) ** 2
    return rows if varies or always else None
