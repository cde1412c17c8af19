"""A number over the steps of training, as arrays: a run can have a hundred thousand of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from hf_rksp.json_data import finite


@dataclass(frozen=True)
class Extreme:
    """A value and where it was found: a step, or a layer."""

    value: float
    where: Any


#: The span of two numbers below it is finite.
_MOST = 1e150


def drawable(value: Any) -> float | None:
    """``value`` if it is a number that fits an axis."""
    number = value if type(value) is float else finite(value)
    return number if number is not None and abs(number) < _MOST else None


class Series:
    """Steps in rising order, and a value at each; ``None`` is a number that was not finite.

    It grows at its end. Going through it gives pairs of a step and a value.
    """

    def __init__(self, pairs: Iterable[tuple[int, float | None]] = ()) -> None:
        self._steps, self._values = array("q"), array("d")
        for step, value in pairs:
            self.add(step, value)

    def add(self, step: int, value: float | None) -> None:
        """One more."""
        self._steps.append(step)
        self._values.append(numpy.nan if value is None else value)

    def copy(self) -> Series:
        """Another one that grows by itself."""
        found = Series()
        found._steps, found._values = self._steps[:], self._values[:]
        return found

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, float | None]]:
        return (
            (step, None if value != value else value) for step, value in zip(self._steps, self._values, strict=True)
        )

    @property
    def steps(self) -> numpy.ndarray:
        """All steps, shape ``(n,)``."""
        return numpy.array(self._steps)

    @property
    def values(self) -> numpy.ndarray:
        """The value at each step, shape ``(n,)``; NaN is a number that was not finite."""
        return numpy.array(self._values)

    @property
    def last(self) -> tuple[int, float | None]:
        """The last step and its value."""
        return self._steps[-1], None if self._values[-1] != self._values[-1] else self._values[-1]

    def known(self) -> Series:
        """The finite numbers alone."""
        steps, values = self.steps, self.values
        finite, found = ~numpy.isnan(values), Series()
        found._steps.frombytes(steps[finite].tobytes())
        found._values.frombytes(values[finite].tobytes())
        return found

    def any(self) -> bool:
        """Whether there is a finite number."""
        return any(value == value for value in self._values)

    def gaps(self) -> list[tuple[int, int]]:
        """First and last step of each stretch without a finite number."""
        missing = numpy.isnan(self.values)
        edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], missing, [False]]))).reshape(-1, 2)
        return [(self._steps[first], self._steps[end - 1]) for first, end in edges]

    def highest(self) -> Extreme | None:
        """The largest value, and the first step that has it."""
        return self._extreme(numpy.nanargmax)

    def lowest(self) -> Extreme | None:
        """The smallest value, and the first step that has it."""
        return self._extreme(numpy.nanargmin)

    def _extreme(self, place_of: Any) -> Extreme | None:
        if not self.any():
            return None
        place = int(place_of(self.values))
        return Extreme(self._values[place], self._steps[place])
