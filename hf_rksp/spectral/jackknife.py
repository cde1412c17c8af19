"""Standard errors by a delete-one-group jackknife.

The tokens of one sequence are not independent, so the groups are groups of sequences (Kunsch 1989; Busing et al. 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from hf_rksp.errors import InputError
from hf_rksp.spectral.moments import SecondMoments, merge_all


def leave_one_out(groups: Sequence[SecondMoments]) -> Iterator[SecondMoments]:
    """The moments of all groups except one, for each group in turn; one set of moments is in memory at a time.

    >>> import torch
    >>> groups = [SecondMoments(1) for _ in range(3)]
    >>> for group, value in zip(groups, (1.0, 2.0, 6.0)):
    ...     group.update(torch.tensor([[value]]), torch.tensor([[value]]))
    >>> [float(rest.mean_x) for rest in leave_one_out(groups)]  # means of (2, 6), (1, 6), (1, 2)
    [4.0, 3.5, 1.5]
    """
    total = merge_all(groups)
    for group in groups:
        yield total.without(group)


def standard_error(replicates: Sequence[float]) -> float:
    """``sqrt((g - 1) / g * sum (theta_(i) - mean)^2)`` of the g leave-one-out values; NaN if one is not finite.

    Raises:
        InputError: fewer than two replicates.

    >>> round(standard_error([4.0, 3.5, 1.5]) ** 2, 6)  # of the mean of 1, 2, 6: variance 7, divided by 3
    2.333333
    """
    g = len(replicates)
    if g < 2:
        raise InputError(f"{g} replicate(s): a jackknife needs at least two groups")
    if not all(math.isfinite(value) for value in replicates):
        return math.nan
    mean = math.fsum(replicates) / g
    return math.sqrt((g - 1) / g * math.fsum((value - mean) ** 2 for value in replicates))


def jackknife(
    groups: Sequence[SecondMoments], estimate: Callable[[SecondMoments], dict[str, float]]
) -> dict[str, list[float]]:
    """Leave-one-out values of every number that ``estimate`` returns, in the order of the groups.

    >>> import torch
    >>> groups = [SecondMoments(1) for _ in range(3)]
    >>> for group, value in zip(groups, (1.0, 2.0, 6.0)):
    ...     group.update(torch.tensor([[value]]), torch.tensor([[value]]))
    >>> jackknife(groups, lambda moments: {"mean": float(moments.mean_x)})
    {'mean': [4.0, 3.5, 1.5]}
    """
    values: dict[str, list[float]] = {}
    for rest in leave_one_out(groups):
        for name, value in estimate(rest).items():
            values.setdefault(name, []).append(value)
    return values
