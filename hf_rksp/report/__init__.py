"""A profile as ``report.json``, ``report.md`` with figures, and one ``report.html``; all rendered from the JSON alone.

The history of training runs is drawn as a page of its own, by `write_timeline`.
"""

from hf_rksp.report.history import History, read_history
from hf_rksp.report.html import render_html
from hf_rksp.report.markdown import render_markdown
from hf_rksp.report.schema import SCHEMA_VERSION, profile_from_dict, profile_to_dict
from hf_rksp.report.sections import Section, Table
from hf_rksp.report.timeline import render_timeline, write_timeline
from hf_rksp.report.write import FORMATS, check_writable, read_report, write_report

__all__ = [
    "FORMATS",
    "SCHEMA_VERSION",
    "History",
    "Section",
    "Table",
    "check_writable",
    "profile_from_dict",
    "profile_to_dict",
    "read_history",
    "read_report",
    "render_html",
    "render_markdown",
    "render_timeline",
    "write_report",
    "write_timeline",
]
