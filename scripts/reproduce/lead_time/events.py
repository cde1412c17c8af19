"""When a run has failed. Defined before any signal is looked at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: A run fails at the first step from which on the loss stays more than `ABOVE` over its running median for `STEPS` steps.
ABOVE, STEPS, MEDIAN_OF = 0.5, 20, 50


def failure(losses: Sequence[float]) -> int | None:
    """The step of the failure, or ``None``.

    The running median is that of the 50 steps before. A run that ends in less than 20 such steps, because its loss exploded, has
    failed at the first of them; one that explodes within its first 50 steps, at its last one.

    Args:
        losses: of each step; the last one may be infinite or NaN.

    >>> failure([1.0] * 60 + [2.0] * 20)
    60
    >>> failure([1.0] * 60 + [2.0] * 19 + [1.0]) is None
    True
    >>> failure([3.0] * 30 + [math.inf])
    30
    """
    for step in range(MEDIAN_OF, len(losses)):
        limit = statistics.median(losses[step - MEDIAN_OF : step]) + ABOVE
        after = losses[step : step + STEPS]
        ended = not math.isfinite(losses[-1]) and step + STEPS >= len(losses)
        if all(not loss <= limit for loss in after) and (len(after) == STEPS or ended):
            return step
    return len(losses) - 1 if losses and not math.isfinite(losses[-1]) else None
