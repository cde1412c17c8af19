"""Stand aside: what cannot be read in a run is left out, said once for each cause, and counted."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from hf_rksp.errors import RkspError, first_line

logger = logging.getLogger(__name__)

#: Reasons that are kept until somebody asks.
_MOST_REASONS = 100


class Aside:
    """Counts what a part of the package leaves out of a run, and says why. It never raises.

    Args:
        part: who leaves it out, the subject of the sentence.
        counter: name of the count in the logs.
        remedy: what switches that part off.

    Attributes:
        count: layers left out so far, each as often as a pass or a profile went without it.
    """

    def __init__(self, part: str, counter: str, remedy: str) -> None:
        self.part, self.counter, self.remedy = part, counter, remedy
        self.count = 0
        #: Is called with each new cause, as a sentence.
        self.listener: Callable[[str], None] | None = None
        self._said: set[str] = set()
        self._reasons: list[str] = []

    def __call__(self, what: str, cause: object, layers: int = 1) -> None:
        """Leave ``layers`` layers out because of ``cause``; ``what`` names them for the reader."""
        self.count += layers
        text = reason(cause)
        if len(self._reasons) < _MOST_REASONS:
            self._reasons.append(f"{what}: {text}")
        # Shapes change from batch to batch and paths from layer to layer: the cause is the same.
        kind = re.sub(r"\d+", "#", f"{what}: {text}")
        if kind not in self._said:
            self._said.add(kind)
            if self.listener is not None:
                self.listener(f"{self.part} leaves out {what}: {text.rstrip('.')}.")
            logger.warning(
                "%s leaves out %s: %s. The run goes on, and %s counts what is left out; %s",
                self.part,
                what,
                text.rstrip("."),
                self.counter,
                self.remedy,
            )

    def pop_reasons(self) -> list[str]:
        """What was left out since the last call, and why."""
        reasons, self._reasons = self._reasons, []
        return reasons


def reason(cause: object) -> str:
    """What an error says; with its type where it is none of ours."""
    if isinstance(cause, BaseException) and not isinstance(cause, RkspError):
        return f"{type(cause).__name__}: {first_line(cause)}"
    return str(cause)
