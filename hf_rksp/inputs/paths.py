"""Names that users give: is it a path, and which?"""

from __future__ import annotations

import os
from pathlib import Path


def as_path(name: str) -> Path:
    """``name`` as a path; ``~`` and ``$NAME`` stand for the home folder and an environment variable."""
    return Path(os.path.expandvars(name)).expanduser()


def written_like_a_path(name: str) -> bool:
    """Whether ``name`` can be no id of the Hub, which is NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~", "$")) or name.count("/") > 1
