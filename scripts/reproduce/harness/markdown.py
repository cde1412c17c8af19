"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[object], rows: Iterable[Sequence[object]], align: str = "---") -> list[str]:
    """The lines of a table; ``align`` is ``"---"`` or, for numbers, ``"---:"``."""
    lines = [header, [align] * len(header), *rows]
    return ["".join(f"| {cell} " if cell != "" else "| " for cell in cells) + "|" for cells in lines]
