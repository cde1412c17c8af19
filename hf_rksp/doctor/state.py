"""``trainer_state.json`` of Trainer: what was logged at which step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rksp.errors import SchemaError
from hf_rksp.files import reason_of
from hf_rksp.report.run.series import Series, drawable

FILE_NAME = "trainer_state.json"


@dataclass(frozen=True)
class LoggedRun:
    """What a run has logged.

    Attributes:
        source: the file that it was read from.
        step: last step that was made.
        planned: steps that were planned; ``None`` if that is not known.
        series: key -> value over the steps; what is logged as NaN, inf or text is missing there.
    """

    source: Path
    step: int
    planned: int | None
    series: Mapping[str, Series] = field(default_factory=dict)

    def of(self, key: str) -> Series:
        """A series; empty if the key was not logged."""
        return self.series.get(key, Series())


def read_state(file: Path) -> LoggedRun:
    """Read a ``trainer_state.json``.

    Raises:
        SchemaError: it cannot be read, or is no state of Trainer.
    """
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = reason_of(error) if isinstance(error, OSError) else f"not JSON ({error}), it may be half-written"
        raise SchemaError(f"{str(file)!r}: {why}; pass another checkpoint") from None
    rows = data.get("log_history") if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise SchemaError(f"{str(file)!r}: it has no log_history, so it is no state of Trainer")
    return LoggedRun(file, _step(data, "global_step") or _last(rows), _step(data, "max_steps"), series_of(rows))


def series_of(rows: list[Any]) -> dict[str, Series]:
    """The numbers of log rows by key, by rising step. A later row of a step replaces an earlier one."""
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        step = _step(row, "step") if isinstance(row, Mapping) else None
        if step is None or not isinstance(row, Mapping):
            continue
        for key, value in row.items():
            if key not in ("step", "epoch") and not key.startswith("train_"):
                number = value
                if isinstance(value, str):  # some callbacks log text: '3.1' or 'nan'
                    try:
                        number = float(value)
                    except ValueError:
                        continue
                if (isinstance(number, (int, float)) and not isinstance(number, bool)) or number is None:
                    found.setdefault(str(key), {})[step] = drawable(number)
    return {key: Series(sorted(values.items())) for key, values in found.items()}


def _step(data: Mapping[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _last(rows: list[Any]) -> int:
    return max((_step(row, "step") or 0 for row in rows if isinstance(row, Mapping)), default=0)
