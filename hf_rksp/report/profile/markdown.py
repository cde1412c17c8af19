"""The report as GitHub Markdown with its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_rksp.report.kit.markdown import Ready, command_block, markdown_environment
from hf_rksp.report.kit.sections import Sections
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.profile.view import view


def render_markdown(data: Mapping[str, Any], sections: Sections = ()) -> tuple[str, dict[str, str]]:
    """The text of ``report.md``, and name -> text of each file in ``figures/``; equal input gives equal bytes.

    Raises:
        SchemaError: ``data`` is not a report of this schema version.
    """
    shown = view(data, sections)
    figures: list[Figure] = [
        *shown["planes"],
        *shown["depth"],
        *(figure for part in sections for figure in part.figures),
    ]
    tables, start = [], 0
    for group, columns in shown["groups"]:
        end = start + len(columns)
        cells = [(row["name"], row["identity"], row["cells"][start:end]) for row in shown["rows"]]
        tables.append((group, columns, cells))
        start = end
    shown |= {"tables": tables, "command": Ready(_command(shown["command"])), "sep": Ready(" · ")}
    text = markdown_environment("hf_rksp.report.profile").get_template("report.md").render(shown)
    return re.sub(r"\n{3,}", "\n\n", text), {f"{figure.key}.svg": figure.document() for figure in figures}


def _command(command: str) -> str:
    return command_block(command) if command else "No command was recorded: this profile was made from Python."
