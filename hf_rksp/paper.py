"""The tables of the paper (arXiv:2602.22988), read from ``paper.json``, and the figures that are compared with ours.

``tables`` in the file holds tables as the paper prints them: rows with named columns, shares as numbers from 0 to 1. A column
that is a quantity of a layer has its key from `hf_rksp.quantities.LAYER`. ``models`` names, for each architecture that we
compare, the rows and the columns to take; it holds no number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hf_rksp.errors import SchemaError

SCHEMA_VERSION = 1
#: What the rows of a table were measured on.
WEIGHTS = ("initialised", "trained", "pretrained", "not stated")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        table: its number.
        title: what it is about.
        setting: what was measured, as far as the paper says.
        weights: "initialised", "trained", "pretrained" or "not stated".
        rows: column -> text, number, interval ``[low, high]``, or ``None`` for an empty cell; every row has the same columns.
    """

    table: int
    title: str
    setting: str
    weights: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self.rows[0])


@dataclass(frozen=True)
class PaperFigure:
    """One number of the paper that is compared with ours.

    Attributes:
        table: number of its table.
        quantity: key in `hf_rksp.quantities.LAYER`.
        value: as printed.
        third: "early", "middle" or "late" third of the depth; ``None``: mean over the layers.
    """

    table: int
    quantity: str
    value: float
    third: str | None = None


@dataclass(frozen=True)
class PaperModel:
    """The paper's numbers for one architecture.

    Attributes:
        name: as the paper calls it.
        figures: the numbers.
        setting: of their tables.
        pretrained: whether they are measured on pretrained weights.
        may_exclude_residual: whether they may describe f alone, in y = x + f(x); the paper does not say.
    """

    name: str
    figures: tuple[PaperFigure, ...]
    setting: str
    pretrained: bool
    may_exclude_residual: bool

    def mean(self, quantity: str) -> float:
        """The mean over the layers.

        Raises:
            KeyError: the paper gives none.
        """
        return {each.quantity: each.value for each in self.figures if each.third is None}[quantity]


@dataclass(frozen=True)
class Paper:
    """All that the file holds: ``source`` is the citation, ``tables`` by number, ``models`` by key in the order of the file."""

    source: str
    tables: Mapping[int, PaperTable]
    models: Mapping[str, PaperModel]


@cache
def read_paper() -> Paper:
    """The file of the package.

    Raises:
        SchemaError: see `paper_from_dict`.
    """
    return paper_from_dict(json.loads(files("hf_rksp").joinpath("paper.json").read_text(encoding="utf-8")))


def paper_from_dict(data: Mapping[str, Any]) -> Paper:
    """The content of ``paper.json``, checked.

    Raises:
        SchemaError: names the table or the model, and what is wrong with it.
    """
    if data["schema_version"] != SCHEMA_VERSION:
        raise SchemaError(f"paper.json: schema_version={data['schema_version']!r}: this version reads {SCHEMA_VERSION}")
    tables: dict[int, PaperTable] = {}
    for entry in data["tables"]:
        table = _table(entry)
        if table.table in tables:
            raise SchemaError(f"paper.json: table {table.table} is there twice")
        tables[table.table] = table
    return Paper(data["source"], tables, {entry["key"]: _model(entry, tables) for entry in data["models"]})


def _table(entry: Mapping[str, Any]) -> PaperTable:
    table = PaperTable(**{**entry, "rows": tuple(entry["rows"])})
    if not table.rows or any(tuple(row) != table.columns for row in table.rows):
        raise SchemaError(f"paper.json: table {table.table}: give each row the same columns in the same order")
    if table.weights not in WEIGHTS:
        raise SchemaError(f"paper.json: table {table.table}: weights={table.weights!r} is none of {', '.join(WEIGHTS)}")
    return table


def _model(entry: Mapping[str, Any], tables: Mapping[int, PaperTable]) -> PaperModel:
    figures = tuple(figure for choice in entry["figures"] for figure in _figures(entry["key"], choice, tables))
    used = [tables[number] for number in dict.fromkeys(figure.table for figure in figures)]
    return PaperModel(
        entry["name"],
        figures,
        setting=" ".join(dict.fromkeys(_setting(table) for table in used)),
        pretrained=all(table.weights == "pretrained" for table in used),
        may_exclude_residual=entry.get("may_exclude_residual", False),
    )


def _setting(table: PaperTable) -> str:
    return f"Pretrained weights. {table.setting}" if table.weights == "pretrained" else table.setting


def _figures(key: str, choice: Mapping[str, Any], tables: Mapping[int, PaperTable]) -> Sequence[PaperFigure]:
    """The numbers that ``choice`` names: each quantity in each row of the model, by thirds where the table has those."""
    number, model = choice["table"], choice["model"]
    rows = [row for row in tables[number].rows if row["model"] == model] if number in tables else []
    if not rows:
        raise SchemaError(f"paper.json: model {key}: table {number} has no row for {model!r}")
    if missing := [name for name in choice["quantities"] if name not in rows[0]]:
        raise SchemaError(f"paper.json: model {key}: table {number} has no column {missing[0]!r}")
    return [PaperFigure(number, name, row[name], row.get("third")) for name in choice["quantities"] for row in rows]
