"""Names that users give: is it a path, and which?"""

from __future__ import annotations

import os
from pathlib import Path


def as_path(name: str) -> Path:
    """``name`` as a path; ``~`` and ``$NAME`` stand for the home folder and an environment variable."""
    path = Path(os.path.expandvars(name))
    try:
        return path.expanduser()
    except RuntimeError:  # a user that this machine does not know
        return path


def is_there(path: Path) -> bool:
    """Whether anything lies at ``path``; a name that no file can have is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def written_like_a_path(name: str) -> bool:
    """Whether ``name`` can be no id of the Hub, which is NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~", "$")) or name.count("/") > 1
