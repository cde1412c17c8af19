"""Alarms to the trackers of a run that know alerts: trackio and W&B. Others see the number of alarms in the logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hf_rksp.training.aside import reason

logger = logging.getLogger(__name__)

#: Failures in a row after which a tracker gets no more alerts: each one may wait for a network.
_MOST_FAILURES = 5
#: Takes title and text.
Send = Callable[[str, str], None]


def _trackio(title: str, text: str) -> None:
    trackio: Any = sys.modules.get("trackio")  # the tracker of Trainer has imported it, or there is no run of it
    if trackio is not None and trackio.context_vars.current_run.get() is not None:
        trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)


def _wandb(title: str, text: str) -> None:
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        # W&B drops alerts of one title for a minute unless it is told not to.
        wandb.alert(title=title, text=text, level="WARN", wait_duration=0)


_TRACKERS: dict[str, Send] = {"trackio": _trackio, "wandb": _wandb}


def sender(report_to: object) -> Send | None:
    """What sends an alarm to the trackers among ``report_to`` (of TrainingArguments); ``None`` if none knows alerts.

    A tracker that cannot be reached does not end a run: a warning says so once. After several failures in a row it is left alone.
    """
    names: Sequence[object] = report_to if isinstance(report_to, (list, tuple)) else [report_to]
    reached = {name: _TRACKERS[name] for name in map(str, names) if name in _TRACKERS}
    if not reached:
        return None

    failures = dict.fromkeys(reached, 0)

    def send(title: str, text: str) -> None:
        for name, tracker in reached.items():
            if failures[name] >= _MOST_FAILURES:
                continue
            try:
                tracker(title, text)
                failures[name] = 0
            except Exception as error:
                failures[name] += 1
                if failures[name] == 1:
                    logger.warning("%s did not take an alert: %s", name, reason(error))

    return send
