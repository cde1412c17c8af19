"""Lines of a log that have a loss: which of them are not finite, also where Trainer has logged something else."""

from __future__ import annotations

import numpy

from hf_rksp.report.run.series import Series

#: Lines in a row without a finite gradient norm, from which they count by themselves: a scaler of float16 skips single steps.
LASTING = 3
#: A loss above it does not end at exactly 0 by itself.
_ZERO = 0.01


class Rows:
    """The lines of a log.

    Attributes:
        steps, loss: of each line, shape ``(n,)``; the loss is NaN where it is not finite.
        norm_broken, norm_zero: whether the gradient norm of the line is not finite, or exactly 0.
        lost: whether the loss of the line was not finite, whatever the line says.
        broken: whether the loss or the gradient norm was not finite.
        tail: the first of the broken lines that last to the end; ``n`` if there are none.
    """

    def __init__(self, loss: Series, norm: Series) -> None:
        self.steps, self.loss = loss.steps, loss.values
        norm_steps, norms = norm.steps, norm.values
        places = numpy.searchsorted(norm_steps, self.steps).clip(max=max(len(norms) - 1, 0))
        has = norm_steps[places] == self.steps if len(norms) else numpy.zeros(len(self.steps), bool)
        self.norm_broken = has & numpy.isnan(norms[places]) if len(norms) else has
        self.norm_zero = has & (norms[places] == 0) if len(norms) else has
        # Trainer logs a mean for what is not finite, and 0 if nothing is: the gradient norm of the line shows it.
        self.lost = numpy.isnan(self.loss) | ((self.loss == 0) & self.norm_broken)
        if not has.any():
            self.lost |= self._zeros_to_the_end()
        self.broken = self.lost | self.norm_broken
        healthy = numpy.flatnonzero(~self.broken)
        tail = int(healthy[-1]) + 1 if len(healthy) else 0
        counts = self.lost[tail:].any() or len(self.steps) - tail >= LASTING
        self.tail = tail if tail < len(self.steps) and counts else len(self.steps)

    def _zeros_to_the_end(self) -> numpy.ndarray:
        """Lines that end a log of larger losses with zeros, if no gradient norm was logged."""
        other = numpy.flatnonzero(self.loss != 0)
        first = int(other[-1]) + 1 if len(other) else 0
        lines = numpy.arange(len(self.loss)) >= first
        before = self.loss[:first][~numpy.isnan(self.loss[:first])]
        large = len(before) > 0 and float(numpy.median(before)) > _ZERO
        return lines if large and lines.sum() >= LASTING else numpy.zeros(len(self.loss), bool)
