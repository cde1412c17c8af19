"""The page of a run, next to its history."""

from __future__ import annotations

import logging
from pathlib import Path

from hf_rksp.training.aside import reason

logger = logging.getLogger(__name__)


def draw(history: Path) -> None:
    """Draw a run as a page. The run is over and its numbers are on disk, so what goes wrong is a warning."""
    from hf_rksp.report import read_history, write_timeline

    page = history.with_name(history.stem.replace("history", "report") + ".html")
    try:
        write_timeline([read_history(history)], page)
    except Exception as error:
        logger.warning("the report was not written: %s", reason(error))
