"""Alarms to the trackers of a run that know alerts: trackio and W&B. Others see the number of alarms in the logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hf_rksp.training.aside import reason

logger = logging.getLogger(__name__)

#: Takes title and text.
Send = Callable[[str, str], None]


def _trackio(title: str, text: str) -> None:
    trackio: Any = sys.modules.get("trackio")  # the tracker of Trainer has imported it, or there is no run of it
    if trackio is not None and trackio.context_vars.current_run.get() is not None:
        trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)


def _wandb(title: str, text: str) -> None:
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.alert(title=title, text=text, level="WARN")


_TRACKERS: dict[str, Send] = {"trackio": _trackio, "wandb": _wandb}


def sender(report_to: object) -> Send | None:
    """What sends an alarm to the trackers among ``report_to`` (of TrainingArguments); ``None`` if none knows alerts.

    A tracker that cannot be reached does not end a run: a warning says so once.
    """
    names: Sequence[object] = report_to if isinstance(report_to, (list, tuple)) else [report_to]
    reached = {name: _TRACKERS[name] for name in map(str, names) if name in _TRACKERS}
    if not reached:
        return None

    def send(title: str, text: str) -> None:
        for name, tracker in list(reached.items()):
            try:
                tracker(title, text)
            except Exception as error:
                logger.warning("%s gets no alerts of this run: %s", name, reason(error))
                del reached[name]

    return send
