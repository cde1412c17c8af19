"""The report as GitHub Markdown with its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_rksp.report.kit.sections import Sections
from hf_rksp.report.kit.svg import Figure
from hf_rksp.report.kit.text import line
from hf_rksp.report.profile.view import view

#: What could start markup inside a line. Entities where a backslash would itself be read differently inside tables.
_MARKUP = {character: f"&#{ord(character)};" for character in "\\`|<>&"} | {
    character: f"\\{character}" for character in "*[]~$"
}
# Inside a word an underscore is plain text, and escaping it would only spoil the source.
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# Plain text that GitHub would turn into a link.
_LINKS = re.compile(r"(?i)(?<=\w)(:)(?=//)|(?<=\bwww)(\.)|(?<=mailto)(:)")


class Ready(str):
    """Markdown already, not to be escaped again."""


def render_markdown(data: Mapping[str, Any], sections: Sections = ()) -> tuple[str, dict[str, str]]:
    """The text of ``report.md``, and name -> text of each file in ``figures/``; equal input gives equal bytes.

    Raises:
        SchemaError: ``data`` is not a report of this schema version.
    """
    shown = view(data, sections)
    figures: list[Figure] = [*shown["planes"], *shown["depth"]]
    tables, start = [], 0
    for group, columns in shown["groups"]:
        end = start + len(columns)
        cells = [(row["name"], row["identity"], row["cells"][start:end]) for row in shown["rows"]]
        tables.append((group, columns, cells))
        start = end
    shown |= {"tables": tables, "command": Ready(_command(shown["command"])), "sep": Ready(" · ")}
    text = markdown_environment().get_template("report.md").render(shown)
    return re.sub(r"\n{3,}", "\n\n", text), {f"{figure.key}.svg": figure.document() for figure in figures}


@cache
def markdown_environment() -> Environment:
    """The templates of Markdown files: whatever is put in is escaped, `Ready` text alone is not."""
    # `finalize` sees every expression, so nothing from a report reaches the text unescaped by oversight.
    return Environment(
        loader=PackageLoader("hf_rksp.report"),
        autoescape=False,
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _escape(value: object) -> str:
    if isinstance(value, Ready):
        return value
    # Leading and trailing blanks are the template's own, as in " (identity)".
    text = str(value)
    body = line(text, 2000)
    lead, tail = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :]
    escaped = _LINKS.sub(lambda found: f"\0{ord(found.group())};", body)
    escaped = "".join(_MARKUP.get(character, character) for character in escaped).replace("\0", "&#")
    return lead + _UNDERSCORE.sub(r"\_", escaped) + (tail if body else "")


def _command(command: str) -> str:
    return command_block(command) if command else "No command was recorded: this profile was made from Python."


def command_block(command: str, language: str = "sh") -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"{fence}{language}\n{command}\n{fence}"
