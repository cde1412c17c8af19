"""A profile as ``report.json``, ``report.md`` with figures, and one ``report.html``; all rendered from the JSON alone."""

from hf_rksp.report.html import render_html
from hf_rksp.report.markdown import render_markdown
from hf_rksp.report.schema import SCHEMA_VERSION, profile_from_dict, profile_to_dict
from hf_rksp.report.write import FORMATS, check_writable, read_report, write_report

__all__ = [
    "FORMATS",
    "SCHEMA_VERSION",
    "check_writable",
    "profile_from_dict",
    "profile_to_dict",
    "read_report",
    "render_html",
    "render_markdown",
    "write_report",
]
