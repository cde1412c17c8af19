"""Streaming second moments of paired states: everything the spectrum needs, in O(d^2) memory.

Source: RKSP section 3.2.1 (snapshots) and Eq. 6-7. Every quantity of the spectrum is a function of
``n``, the two means and the centred scatter matrices Cxx, Cyx and Cyy, so hidden states never have to be kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from hf_rksp.errors import InputError, NonFiniteError, TooFewTokensError

#: A symmetric product is computed in this many blocks (10 of 16 parts of the work), none narrower than the second number.
_BLOCKS, _LEAST_BLOCK = 4, 96


class SecondMoments:
    """Weighted count, means and centred scatter of pairs ``(x, y)`` of ``dim``-vectors, in float64.

    Batches are centred on their own mean before they are added (pairwise update of Chan, Golub and LeVeque), so
    the result depends on neither the order, the size nor the placement of batches beyond rounding.

    Attributes:
        dim: width ``d`` of both states.
        count: number of rows that were added (mask on, weight above zero).
        weight: sum of the row weights; equals ``count`` when no weights are given.
        weight_sq: sum of the squared row weights.
        mean_x, mean_y: shape ``(d,)``.
        cxx, cyx, cyy: shape ``(d, d)``; ``cyx`` is ``sum_i w_i (y_i - mean_y)(x_i - mean_x)^T``.
        width, outside_y: ``dim`` and 0; if x and y are coordinates in a subspace (`hf_rksp.spectral.samples`), the width of the
            states and the scatter of y outside the subspace, about the mean of the whole sample.
    """

    def __init__(
        self, dim: int, device: torch.device | str = "cpu", width: int | None = None, outside_y: float = 0.0
    ) -> None:
        if dim < 1:
            raise InputError(f"dim={dim}: the state needs at least one dimension")
        self.dim = dim
        self.width = dim if width is None else width
        self.outside_y = outside_y
        self.count = 0
        self.weight = 0.0
        self.weight_sq = 0.0
        zero = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.mean_x, self.mean_y = zero[0].clone(), zero[0].clone()
        self.cxx, self.cyx, self.cyy = zero, zero.clone(), zero.clone()

    @property
    def effective_count(self) -> float:
        """Kish's effective sample size ``(sum w)^2 / sum w^2``; equals ``count`` for equal weights."""
        return self.weight**2 / self.weight_sq if self.weight_sq > 0 else 0.0

    def update(self, x: Tensor, y: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Add one batch; nothing is added if it raises.

        Args:
            x: states before the block, shape ``(..., d)``, any floating dtype.
            y: states after the block, same shape.
            mask: shape ``(...)``, nonzero for rows that count; ``None`` counts all rows.
            weights: shape ``(...)``, finite and not negative; a row of weight zero does not count.

        Raises:
            InputError: shapes or dtypes do not fit together.
            NonFiniteError: a counted row holds NaN or inf. Rows that are masked out are never looked at.
        """
        rows_x, rows_y = self._rows(x, "x"), self._rows(y, "y")
        if x.shape != y.shape:
            raise InputError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass states of the same tokens")
        row_weights = self._row_weights(x, mask, weights)
        if row_weights is not None:
            keep = row_weights > 0
            rows_x, rows_y, row_weights = rows_x[keep], rows_y[keep], row_weights[keep]
        if rows_x.shape[0] == 0:
            return
        rows_x = rows_x.to(self.mean_x.device, torch.float64)
        rows_y = rows_y.to(self.mean_x.device, torch.float64)
        if row_weights is None:
            weight = weight_sq = float(rows_x.shape[0])
            mean_x, mean_y = rows_x.mean(0), rows_y.mean(0)
        else:
            row_weights = row_weights.to(self.mean_x.device)
            weight, weight_sq = float(row_weights.sum()), float(row_weights.square().sum())
            mean_x, mean_y = row_weights @ rows_x / weight, row_weights @ rows_y / weight
        # One NaN or inf makes a mean non-finite, so looking at the means checks every row for the price of d numbers.
        for name, mean, rows in (("x", mean_x, rows_x), ("y", mean_y, rows_y)):
            if not torch.isfinite(mean).all():
                raise not_finite(name, rows)
        centred_x, centred_y = rows_x - mean_x, rows_y - mean_y
        left_x, left_y = centred_x, centred_y
        if row_weights is not None:
            left_x, left_y = centred_x * row_weights[:, None], centred_y * row_weights[:, None]
        _add_symmetric(self.cxx, left_x, centred_x)
        self.cyx.addmm_(left_y.T, centred_x)
        _add_symmetric(self.cyy, left_y, centred_y)
        self._shift_means(rows_x.shape[0], weight, weight_sq, mean_x, mean_y)

    def merge(self, other: SecondMoments) -> SecondMoments:
        """Add ``other`` to this one in place, exactly, and return self."""
        if other.dim != self.dim:
            raise InputError(f"cannot merge moments of dim {other.dim} into moments of dim {self.dim}")
        if other.weight > 0:
            device = self.mean_x.device
            self.cxx += other.cxx.to(device)
            self.cyx += other.cyx.to(device)
            self.cyy += other.cyy.to(device)
            self.outside_y += other.outside_y
            means = other.mean_x.to(device), other.mean_y.to(device)
            self._shift_means(other.count, other.weight, other.weight_sq, *means)
        return self

    def without(self, part: SecondMoments) -> SecondMoments:
        """The moments of this sample less ``part``, which must have been merged into it (for the jackknife)."""
        rest = SecondMoments(self.dim, self.mean_x.device, self.width, self.outside_y - part.outside_y)
        rest.count = self.count - part.count
        rest.weight = self.weight - part.weight
        rest.weight_sq = self.weight_sq - part.weight_sq
        if rest.count <= 0 or rest.weight <= 0:
            raise TooFewTokensError(f"nothing is left when {part.count} of {self.count} rows are taken out")
        rest.mean_x = (self.weight * self.mean_x - part.weight * part.mean_x) / rest.weight
        rest.mean_y = (self.weight * self.mean_y - part.weight * part.mean_y) / rest.weight
        step_x, step_y = rest.mean_x - part.mean_x, rest.mean_y - part.mean_y
        factor = rest.weight * part.weight / self.weight
        rest.cxx = torch.addr(self.cxx - part.cxx, step_x, step_x, alpha=-factor)
        rest.cyx = torch.addr(self.cyx - part.cyx, step_y, step_x, alpha=-factor)
        rest.cyy = torch.addr(self.cyy - part.cyy, step_y, step_y, alpha=-factor)
        return rest

    def cpu(self) -> SecondMoments:
        """The same moments in main memory, for LAPACK; ``self`` if they are there already."""
        if self.mean_x.device.type == "cpu":
            return self
        return SecondMoments(self.dim, width=self.width).merge(self)

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> SecondMoments:
        """Merge the moments of all processes of ``group`` in place; every process ends with the same numbers.

        Every process has to call it, also one that holds no rows. Two all-reduces, O(d^2) numbers.
        """
        steps = self.reduction()
        part = next(steps)
        with contextlib.suppress(StopIteration):
            while True:
                torch.distributed.all_reduce(part, group=group)
                part = steps.send(part)
        return self

    def reduction(self) -> Generator[Tensor, Tensor, None]:
        """The steps of `all_reduce`, for a caller that adds up many moments at once.

        It yields what has to be added up over the processes, and is sent the sum: first counts and means, shape ``(3 + 2 d,)``,
        then scatters about the joint means, shape ``(3, d, d)``.
        """
        head = torch.cat(
            [
                self.mean_x.new_tensor([self.count, self.weight, self.weight_sq]),
                self.weight * self.mean_x,
                self.weight * self.mean_y,
            ]
        )
        head = yield head
        count, weight, weight_sq = head[:3].tolist()
        if weight == 0:
            yield torch.zeros_like(self.cxx).expand(3, -1, -1).contiguous()
            return
        mean_x, mean_y = head[3 : 3 + self.dim] / weight, head[3 + self.dim :] / weight
        step_x, step_y = self.mean_x - mean_x, self.mean_y - mean_y
        body = torch.stack(
            [
                torch.addr(self.cxx, step_x, step_x, alpha=self.weight),
                torch.addr(self.cyx, step_y, step_x, alpha=self.weight),
                torch.addr(self.cyy, step_y, step_y, alpha=self.weight),
            ]
        )
        body = yield body
        self.count, self.weight, self.weight_sq = round(count), weight, weight_sq
        self.mean_x, self.mean_y = mean_x, mean_y
        self.cxx, self.cyx, self.cyy = body.unbind()

    def _shift_means(self, count: int, weight: float, weight_sq: float, mean_x: Tensor, mean_y: Tensor) -> None:
        """Move to the joint mean after the scatter of a part with these means was added."""
        total = self.weight + weight
        step_x, step_y = mean_x - self.mean_x, mean_y - self.mean_y
        factor = self.weight * weight / total
        self.cxx.addr_(step_x, step_x, alpha=factor)
        self.cyx.addr_(step_y, step_x, alpha=factor)
        self.cyy.addr_(step_y, step_y, alpha=factor)
        self.mean_x += step_x * (weight / total)
        self.mean_y += step_y * (weight / total)
        self.count += count
        self.weight = total
        self.weight_sq += weight_sq

    def _rows(self, states: Tensor, name: str) -> Tensor:
        if not states.is_floating_point():
            raise InputError(f"{name} has dtype {states.dtype}: pass real floating-point states")
        if states.ndim < 1 or states.shape[-1] != self.dim:
            raise InputError(f"{name} has shape {tuple(states.shape)}: the last dimension has to be dim={self.dim}")
        return states.detach().reshape(-1, self.dim)

    @staticmethod
    def _row_weights(x: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor | None:
        for name, value in (("mask", mask), ("weights", weights)):
            if value is not None and value.shape != x.shape[:-1]:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)}: it needs one value per row, {tuple(x.shape[:-1])}"
                )
        if weights is None:
            return None if mask is None else (mask != 0).reshape(-1).to(x.device, torch.float64)
        rows = weights.detach().reshape(-1).to(x.device, torch.float64)
        if not torch.isfinite(rows).all() or (rows < 0).any():
            raise InputError("weights holds a negative or non-finite value: pass weights of zero or more")
        return rows if mask is None else rows * (mask != 0).reshape(-1).to(x.device)


def _add_symmetric(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left^T right``, which is symmetric: blocks of columns from the diagonal on, mirrored below it."""
    dim = len(total)
    width = max(-(-dim // _BLOCKS), _LEAST_BLOCK)
    for start in range(0, dim, width):
        stop = min(start + width, dim)
        total[start:stop, start:].addmm_(left[:, start:stop].T, right[:, start:])
        total[stop:, start:stop] = total[start:stop, stop:].T


def not_finite(name: str, rows: Tensor) -> NonFiniteError:
    """The error for ``rows``, shape ``(n, d)``, some of which hold NaN or inf.

    >>> str(not_finite("x", torch.tensor([[1.0], [torch.nan]])))[:38]
    'x holds NaN or inf in 1 of 2 rows: fin'
    """
    bad = int((~torch.isfinite(rows)).any(1).sum())
    return NonFiniteError(
        f"{name} holds NaN or inf in {bad} of {rows.shape[0]} rows: find what makes them, or leave those rows out"
    )


def merge_all(parts: Iterable[SecondMoments]) -> SecondMoments:
    """One new ``SecondMoments`` of all ``parts``, which are left as they are.

    >>> parts = [SecondMoments(1), SecondMoments(1)]
    >>> for part, value in zip(parts, (1.0, 3.0)):
    ...     part.update(torch.tensor([[value]]), torch.tensor([[2 * value]]))
    >>> total = merge_all(parts)
    >>> total.count, total.mean_x.item(), total.cxx.item(), total.cyx.item()  # sums over the deviations -1, 1 and -2, 2
    (2, 2.0, 2.0, 4.0)
    """
    parts = list(parts)
    if not parts:
        raise InputError("parts is empty: pass at least one SecondMoments")
    total = SecondMoments(parts[0].dim, parts[0].mean_x.device, parts[0].width)
    for part in parts:
        total.merge(part)
    return total
