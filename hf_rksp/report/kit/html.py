"""One HTML file from templates: style and script inside, no request leaves it, and it reads without scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_rksp.errors import OutputError
from hf_rksp.files import check_writable, put_file, reason_of
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.svg import Figure

#: Package whose folder ``templates`` every page shares.
KIT = "hf_rksp.report.kit"
_CONNECTS = "; connect-src 'self'; frame-src 'self'"


@dataclass(frozen=True)
class Panel:
    """One part of a page.

    Attributes:
        key: its anchor, unless its template gives another; the template is ``key.html``, with ``key.css`` beside it if it needs
            a style of its own.
        title: in the navigation; without one it has no entry there.
        template: another name of the template.
        content: what this template shows, besides what the page shows.
    """

    key: str
    title: str = ""
    template: str = ""
    content: Any = None


def page_of_panels(
    package: str, panels: Sequence[Panel], script: str, figures: Sequence[Figure] = (), **shown: Any
) -> str:
    """Render a page from panels, in their order; see `page` and ``page.html``.

    ``figures`` are those whose own style sheets the page needs.
    """
    folder = files(package).joinpath("templates")
    sheets = [f"{name}.css" for name in dict.fromkeys(panel.template or panel.key for panel in panels)]
    style = "".join(template_text(package, name) for name in sheets if folder.joinpath(name).is_file())
    style += "".join(dict.fromkeys(figure.sheet for figure in figures))
    return page(package, "page.html", style, template_text(package, script), panels=panels, **shown)


def page(package: str, template: str, style: str, script: str, connects: bool = False, **shown: Any) -> str:
    """Render a page.

    Args:
        package: whose folder ``templates`` has the template; those of `KIT` are found too.
        template: its name.
        style: style sheet of the page, besides the one of all pages.
        script: the one script of the page.
        connects: whether it may ask the server that it comes from, and frame its pages.
        shown: what the template shows.
    """
    style = svg.style() + template_text(KIT, "page.css") + style
    return (
        environment(package)
        .get_template(template)
        .render(shown, style=Markup(style), script=Markup(script), policy=_policy(style, script, connects))
    )


def _policy(style: str, script: str, connects: bool) -> str:
    """Names the one style and the one script by their hashes: nothing else could run even if a name slipped through escaping."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'{_CONNECTS if connects else ''}"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def environment(package: str) -> Environment:
    """The templates of a package and those of `KIT`, with escaping on and undefined names an error."""
    return templates(package, autoescape=True)


def templates(package: str, **options: Any) -> Environment:
    """Templates of the package's own folder first, then of that of `KIT`; ``options`` are those of jinja2."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(KIT)]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


@cache
def template_text(package: str, name: str) -> str:
    """A style sheet or script of a package as it stands."""
    return files(package).joinpath("templates", name).read_text(encoding="utf-8")


def drawn(figures: Sequence[Figure]) -> list[tuple[Figure, Markup]]:
    """Figures with their drawings, ready for a template."""
    return [(figure, Markup(figure.inline())) for figure in figures]


def write_page(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page to ``path``; it is made aside and moved into place.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    if target.is_dir() or not target.name:
        raise OutputError(f"path={str(path)!r}: is a folder; pass the name of a file, such as page.html")
    if not target.exists() or target.is_file():
        check_writable(target.parent)
    try:
        put_file(target, text.encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(
            f"path={str(path)!r}: cannot be written ({reason_of(error)}); pass a file in a folder that you may "
            "write to, on a disk with room"
        ) from None
    return target
