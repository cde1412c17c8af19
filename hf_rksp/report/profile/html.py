"""The report on a profile as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from hf_rksp.report.kit import html
from hf_rksp.report.kit.html import Panel
from hf_rksp.report.kit.sections import Sections
from hf_rksp.report.profile.ruler import ruler
from hf_rksp.report.profile.view import view


def render_html(data: Mapping[str, Any], sections: Sections = ()) -> str:
    """The page for a report's dict; equal input gives equal bytes. ``sections`` are shown after the profile.

    Raises:
        SchemaError: ``data`` is not a report of this schema version.
    """
    shown = view(data, sections)
    shown |= {"planes": html.drawn(shown["planes"]), "depth": html.drawn(shown["depth"])}
    panels = [
        Panel("profile", "Profile"),
        Panel("depth", "Depth"),
        *(Panel(part.key, part.title, "section", (part, html.drawn(part.figures))) for part in sections),
        Panel("thresholds", "Thresholds"),
        Panel("aggregates", "Aggregates"),
        Panel("layers", "Layers"),
        Panel("setup", "Set-up"),
        Panel("definitions", "Definitions"),
        Panel("cost", "Cost"),
    ]
    return html.page_of_panels(
        "hf_rksp.report.profile",
        panels,
        "report.js",
        [figure for part in sections for figure in part.figures],
        **shown,
        head=f"{shown['title']} · hf_rksp report",
        kind="Residual Koopman spectral profile",
        data="",
        ruler=Markup(ruler(shown["verdict"])),
    )
