"""Keep what a run says of itself: rows of its history, and what waits for the next log of Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rksp.errors import OutputError
from hf_rksp.history.schema import FILE_NAME, Kind, described
from hf_rksp.history.write import HistoryWriter
from hf_rksp.training.monitors.base import Monitor, Reading

logger = logging.getLogger(__name__)
#: The entry of the recorder in the state of a checkpoint, beside those of the parts.
RECORDER = "recorder"
#: Numbers of a mark: length and checksum.
_MARK = 2


class Recorder:
    """Writes readings, events and logs into ``rksp_history.jsonl``; on other processes than the main one it does nothing.

    A history that cannot be written does not end a run: a warning says so once.

    Attributes:
        path: of the history, if there is one.
        name, mark: of the history, for a checkpoint.
        alarms: how many each part has raised so far.
        send: is called with a title and a sentence for each alarm; see `hf_rksp.training.alerts`.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.epoch: float | None = None
        self._history: HistoryWriter | None = None
        self._barren: Path | None = None
        self._main = True
        self.alarms: dict[str, int] = {}
        self.send: Callable[[str, str], None] | None = None

    def open(
        self,
        folder: Path,
        step: int,
        description: Mapping[str, Any],
        parts: Sequence[Monitor],
        state: Mapping[str, Any],
        main_process: bool = True,
        name: str = FILE_NAME,
    ) -> None:
        """Begin the history of a run, or go on in it.

        Args:
            folder: of the run.
            step: of the checkpoint that the run goes on from, 0 for a fresh run.
            description: model, setup and versions.
            parts: their quantities describe what readings will hold, and their names which logs are kept.
            state: `state_dict` of the checkpoint. What cannot be read of it is left out, and the run goes on.
            main_process: whether this process writes.
            name: of a fresh file.
        """
        kept = _read(state)
        # The name alone: a history stays in the folder of its run.
        self.path = folder / (kept.history or name)
        self._history, self._main = None, main_process
        self.alarms = dict(kept.alarms)
        if not main_process:
            return
        if step and not kept.mark and self.path.exists():
            logger.warning(
                "The checkpoint does not say which history is its own: the run goes on in %s. If another run wrote that "
                "file, pass an output_dir of its own",
                self.path,
            )
        prefixes: Collection[str] = [part.name for part in parts]
        try:
            history = HistoryWriter(self.path, step, self._barren, kept.mark, prefixes)
        except OutputError as error:
            logger.warning(
                "No history is kept of this run: %s. The run goes on, and readings are in the logs alone", error
            )
            return
        quantities: dict[str, Any] = {}
        for part in parts:
            quantities |= described(part.name, part.quantities)
        self.path, self._history = history.path, history
        history.begin(**description, quantities=quantities)

    def reading(self, reading: Reading) -> None:
        """Keep a reading if it measured something, and each of its alarms as an event."""
        if self._history is not None and (reading.values or reading.layers):
            row = {"monitor": reading.monitor, "step": reading.step, "epoch": self.epoch, **reading.more}
            self._history.write(Kind.READING, **row, values=dict(reading.values), layers=list(reading.layers))
        for alarm in reading.alarms if self._main else ():
            if alarm.what == "alarm":
                self.alarms[reading.monitor] = self.alarms.get(reading.monitor, 0) + 1
                if self.send is not None:
                    self.send(
                        f"{reading.monitor}: {alarm.rule} {alarm.layer}".rstrip(), f"Step {reading.step}: {alarm.text}"
                    )
            more = {"layer": alarm.layer} if alarm.layer else {}
            self.event(reading.step, reading.monitor, alarm.what, alarm.text, rule=alarm.rule, **more, **alarm.more)

    def event(self, step: int, by: str, what: str, text: str, **more: Any) -> None:
        """Keep what happened."""
        if self._history is not None:
            self._history.event(step, by, what, text, **more)

    def log(self, step: int, logs: Mapping[str, Any], everything: bool = False) -> None:
        """Keep what was logged: of Trainer's logs what is of the run and not of the machine, or ``everything``."""
        if self._history is not None:
            self._history.log(step, logs, everything)

    def state_dict(self) -> dict[str, Any]:
        """Which file, and what is in it so far."""
        if self._history is None:
            return {}
        return {"history": self._history.path.name, "mark": list(self._history.mark), "alarms": dict(self.alarms)}

    def close(self) -> Path | None:
        """Let go of the history; its path, if it was written."""
        history, self._history = self._history, None
        if history is None:
            return None
        self._barren = history.path if history.barren else None
        return history.path if history.path.is_file() else None


@dataclass(frozen=True)
class _Kept:
    """What a checkpoint says of the history: name of its file, length and checksum, and how often each part has raised an alarm."""

    history: str = ""
    mark: tuple[int, ...] = ()
    alarms: Mapping[str, int] = field(default_factory=dict)


def _read(state: object) -> _Kept:
    if not isinstance(state, Mapping):
        return _Kept()
    history, mark, alarms = (state.get(name) for name in ("history", "mark", "alarms"))
    name = Path(history).name if isinstance(history, str) and history.endswith(".jsonl") else ""
    numbers = [one for one in mark if type(one) is int] if isinstance(mark, (list, tuple)) else []
    counts = alarms.items() if isinstance(alarms, Mapping) else ()
    return _Kept(
        name,
        tuple(numbers) if len(numbers) == _MARK else (),
        {str(part): number for part, number in counts if type(number) is int},
    )
