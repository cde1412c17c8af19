"""A profile as ``report.json``, ``report.md`` with figures, and one ``report.html``; all rendered from the JSON alone.

The history of training runs is drawn as a page of its own, by `write_timeline`.
"""

from hf_rksp.files import check_writable
from hf_rksp.history.read import History, read_history
from hf_rksp.report.kit.sections import Section, Table
from hf_rksp.report.profile.html import render_html
from hf_rksp.report.profile.markdown import render_markdown
from hf_rksp.report.profile.schema import SCHEMA_VERSION, audit_from_dict, audit_to_dict, profile_to_dict
from hf_rksp.report.profile.write import FORMATS, read_report, write_report
from hf_rksp.report.run.page import render_timeline, write_timeline

__all__ = [
    "FORMATS",
    "SCHEMA_VERSION",
    "History",
    "Section",
    "Table",
    "audit_from_dict",
    "audit_to_dict",
    "check_writable",
    "profile_to_dict",
    "read_history",
    "read_report",
    "render_html",
    "render_markdown",
    "render_timeline",
    "write_report",
    "write_timeline",
]
