"""The report as one HTML file: no request leaves it, and it reads without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_rksp.report.kit import svg
from hf_rksp.report.kit.sections import Sections
from hf_rksp.report.profile.ruler import ruler
from hf_rksp.report.profile.view import view


def render_html(data: Mapping[str, Any], sections: Sections = ()) -> str:
    """The page for a report's dict; equal input gives equal bytes. ``sections`` are shown after the verdict.

    Raises:
        SchemaError: ``data`` is not a report of this schema version.
    """
    shown = view(data, sections)
    style, script = svg.style() + template_text("report.css"), template_text("report.js")
    return (
        environment()
        .get_template("report.html")
        .render(
            shown,
            style=Markup(style),
            script=Markup(script),
            # The policy names the one style and the one script by their hashes, so nothing else could run even if a
            # name slipped through the escaping.
            policy=f"default-src 'none'; style-src '{content_hash(style)}'; script-src '{content_hash(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'",
            ruler=Markup(ruler(shown["verdict"])),
            planes=[(figure, Markup(figure.inline())) for figure in shown["planes"]],
            depth=[(figure, Markup(figure.inline())) for figure in shown["depth"]],
        )
    )


@cache
def environment() -> Environment:
    """The templates, with escaping on and undefined names an error."""
    return Environment(
        loader=PackageLoader("hf_rksp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@cache
def template_text(name: str) -> str:
    """A style sheet or script as it stands."""
    return files("hf_rksp.report").joinpath("templates", name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """For a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
