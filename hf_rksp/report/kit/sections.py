"""Sections that a report may have in addition: a text, figures and tables, shown after the profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rksp.report.kit.svg import Figure


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first column names the row, ``numeric`` columns stand to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, figures and tables; ``key`` is its anchor."""

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


Sections = Sequence[Section]
