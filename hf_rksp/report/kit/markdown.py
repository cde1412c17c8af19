"""Text for GitHub Markdown: whatever is put into a template is escaped."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment

from hf_rksp.report.kit.html import templates
from hf_rksp.report.kit.text import line

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


@cache
def markdown_environment(package: str) -> Environment:
    """The Markdown templates of a package and the shared ones: whatever is put in is escaped, `Ready` text alone is not."""
    # `finalize` sees every expression, so nothing from a report reaches the text unescaped by oversight.
    return templates(package, autoescape=False, finalize=_escape)


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


def command_block(command: str, language: str = "sh") -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"{fence}{language}\n{command}\n{fence}"
