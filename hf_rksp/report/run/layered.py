"""What the readings of one monitor say of layers, as arrays: ten thousand readings have more than a million numbers."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence

import numpy

from hf_rksp.history.read import layers_at
from hf_rksp.history.schema import Row
from hf_rksp.json_data import finite, items

#: Entries of a layer that are no number of it.
_NO_NUMBERS = (str, list, dict)


class Layered:
    """The readings of one monitor, by rising step. It grows at its end.

    Attributes:
        last: layer -> its row in the last reading that has it.
    """

    def __init__(self) -> None:
        self.last: dict[str, Row] = {}
        self._places: dict[str, int] = {}
        self._steps, self._counts = array("q"), array("q")
        self._sets: dict[tuple[str, ...], int] = {}
        self._numbers: dict[str, tuple[array[int], array[int], array[float]]] = {}

    def add(self, reading: Row) -> None:
        """One more reading."""
        layers, place = layers_at(reading), len(self._steps)
        self._steps.append(reading["step"])
        self._counts.append(len(layers))
        self._sets.setdefault(tuple(layers), len(items(reading, "layers")))
        self.last |= layers
        for name, layer in layers.items():
            row = self._places.setdefault(name, len(self._places))
            for key, value in layer.items():
                if not isinstance(value, _NO_NUMBERS):
                    readings, rows, values = self._numbers.setdefault(key, (array("q"), array("q"), array("d")))
                    number = finite(value)
                    readings.append(place)
                    rows.append(row)
                    values.append(numpy.nan if number is None else number)

    def copy(self) -> Layered:
        """Another one that grows by itself."""
        return copy.deepcopy(self, {id(row): row for row in self.last.values()})

    @property
    def steps(self) -> numpy.ndarray:
        """The step of each reading, shape ``(readings,)``."""
        return numpy.array(self._steps)

    @property
    def counts(self) -> numpy.ndarray:
        """Layers of each reading, shape ``(readings,)``."""
        return numpy.array(self._counts)

    @property
    def names(self) -> list[str]:
        """Every layer in order of depth: those of the longest reading, then the others."""
        return list(
            dict.fromkeys(name for names in sorted(self._sets, key=lambda one: -self._sets[one]) for name in names)
        )

    def grid(
        self, key: str, columns: numpy.ndarray, width: int, names: Sequence[str]
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """A quantity as a table; of several readings in a column the largest value counts.

        Args:
            key: of the quantity.
            columns: for each reading its column, shape ``(readings,)``.
            width: number of columns.
            names: the layers that are rows; all layers of these readings are among them.

        Returns:
            Values, NaN for what is not finite; and whether there is a reading at all. Both of shape ``(width, len(names))``.
        """
        values, there = numpy.full((width, len(names)), numpy.nan), numpy.zeros((width, len(names)), bool)
        if key in self._numbers:
            readings, rows, found = map(numpy.array, self._numbers[key])
            places = {name: place for place, name in enumerate(names)}
            spots = columns[readings], numpy.array([places[name] for name in self._places])[rows]
            there[spots] = True
            numpy.fmax.at(values, spots, found)
        return values, there


def layered_of(readings: Sequence[Row]) -> Layered:
    """`Layered` of these readings."""
    found = Layered()
    for row in readings:
        found.add(row)
    return found


def steps_in(layered: Sequence[Layered]) -> list[int]:
    """The steps at which any run has a reading."""
    return sorted({step for one in layered for step in one.steps.tolist()})


def names_in(layered: Sequence[Layered]) -> list[str]:
    """The layers of several runs, one run after the other."""
    return list(dict.fromkeys(name for one in layered for name in one.names))


def labels_in(layered: Sequence[Layered]) -> list[str]:
    """What an axis calls each of `names_in`: its number, if all runs have one stack."""
    names = names_in(layered)
    rows = {name: row for one in layered for name, row in one.last.items()}
    if len({str(row.get("stack")) for row in rows.values()}) == 1:
        labels = [str(rows[name].get("index", place)) for place, name in enumerate(names)]
        if len(set(labels)) == len(labels):
            return labels
    return names
