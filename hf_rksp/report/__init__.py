"""A profile as ``report.json``, ``report.md`` with figures, and one ``report.html``; all rendered from the JSON alone.

The history of training runs is drawn as a page of its own, by `write_timeline`. README.md in this folder says what a page is made
of.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name -> module that defines it; imported on first use, so that one part of a page does not load all others.
_PUBLIC = {
    "FORMATS": "hf_rksp.report.profile.write",
    "SCHEMA_VERSION": "hf_rksp.report.profile.schema",
    "History": "hf_rksp.history.read",
    "Section": "hf_rksp.report.kit.sections",
    "Table": "hf_rksp.report.kit.sections",
    "audit_from_dict": "hf_rksp.report.profile.schema",
    "audit_to_dict": "hf_rksp.report.profile.schema",
    "check_writable": "hf_rksp.files",
    "profile_to_dict": "hf_rksp.report.profile.schema",
    "read_history": "hf_rksp.history.read",
    "read_report": "hf_rksp.report.profile.write",
    "render_html": "hf_rksp.report.profile.html",
    "render_markdown": "hf_rksp.report.profile.markdown",
    "render_timeline": "hf_rksp.report.run.page",
    "write_report": "hf_rksp.report.profile.write",
    "write_timeline": "hf_rksp.report.run.page",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
