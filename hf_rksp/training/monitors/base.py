"""The two kinds of guest that a run has: a monitor only looks, an intervention may act."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hf_rksp.capture import Block, Stack
from hf_rksp.capture.tap import Looker
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.quantities import Quantity
from hf_rksp.training.aside import Aside
from hf_rksp.training.watch import Watch


@dataclass(frozen=True)
class Alarm:
    """Something that a monitor wants its reader to see at once.

    Attributes:
        rule: its name, in a word.
        text: one sentence.
        layer: path of the block, if it is about one.
        what: kind of the event in the history: "alarm", or what an intervention has done.
        more: other entries of the event.
    """

    rule: str
    text: str
    layer: str = ""
    what: str = "alarm"
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a monitor measured at one step: plain numbers.

    Attributes:
        monitor: name of the monitor.
        step: of the optimizer.
        values: numbers of the run, for logs and charts, by the keys of the monitor's quantities.
        layers: numbers per layer, for the page.
        more: other entries of the row in the history, such as the number of tokens.
        alarms: see `Alarm`.
    """

    monitor: str
    step: int
    values: Mapping[str, float]
    layers: Sequence[Mapping[str, Any]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    alarms: Sequence[Alarm] = ()


#: Makes a reading. It yields lists of tensors that have to be added up over the processes, and is sent the sums; so the engine
#: adds up what all monitors need in one collective. A monitor has to yield equally often on every process.
Measuring = Generator[Sequence[Tensor], Sequence[Tensor], Reading | None]


def none() -> Measuring:
    """No reading."""
    return None
    yield []


class Monitor:
    """Looks at a run and changes nothing. Every method does nothing unless a monitor overrides it.

    The engine calls the methods on all processes, in the order of `hf_rksp.training.engine`.

    Attributes:
        name: prefix of its settings and log keys.
        quantities: what its readings hold.
        watch: the tap and the layouts of the run, from `attach` on.
        aside: counts what the part leaves out, and says why; each new cause becomes an event of the history.
    """

    name: str = ""
    aside: Aside | None = None
    quantities: tuple[Quantity, ...] = ()
    watch: Watch

    def attach(self, watch: Watch) -> None:
        """The residual blocks are known, and the model was not called yet."""
        self.watch = watch

    def begin(self, step: int) -> None:
        """The run begins with ``step`` optimizer steps behind it; called after `load_state_dict`."""

    def due(self, step: int, last_step: int) -> bool:
        """Whether ``step`` is measured, in a run of ``last_step`` steps."""
        return False

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """A step that is due begins; the reading of what is measured before it."""
        return none()

    def looker(self, step: int) -> Looker | None:
        """Who looks at the next forward pass of this step; asked again for each microbatch."""
        return None

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """The step is over; the reading of it, on the main process."""
        return none()

    def run_end(self, step: int, main_process: bool) -> Measuring:
        """The last step is over; the reading of what is measured once more at the very end."""
        return none()

    def pop_logs(self) -> dict[str, float]:
        """Numbers since the last call, under keys that begin with the name of the part."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain JSON types, and tensors at the top level."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""

    def close(self) -> None:
        """The run is over, or has raised: let go of everything."""


class Logged(Monitor):
    """A monitor whose numbers wait for the next log, and which counts what it leaves out.

    Args:
        aside: see `Monitor`.
    """

    aside: Aside

    def __init__(self, aside: Aside) -> None:
        self.aside = aside
        self._pending: dict[str, float] = {}

    def _log(self, numbers: Mapping[str, float]) -> None:
        """Let ``numbers``, by their keys in the logs, wait for the next log."""
        self._pending |= {**numbers, self.aside.counter: float(self.aside.count)}

    def pop_logs(self) -> dict[str, float]:
        """The numbers of the last reading, if they were not logged yet."""
        pending, self._pending = self._pending, {}
        return pending

    def state_dict(self) -> dict[str, Any]:
        """What waits for the next log, and how much was left out."""
        return {"pending": dict(self._pending), "skipped": self.aside.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._pending = dict(state.get("pending") or {})
        self.aside.count = int(state.get("skipped") or 0)


class HasEvery(Protocol):
    """Settings with an interval."""

    @property
    def every(self) -> int:
        """Optimizer steps from one reading to the next; 0 for none."""


class Regular(Logged):
    """A logged monitor that reads every so many steps, and looks at the training batch of the step itself.

    Attributes:
        config: its settings.
    """

    config: HasEvery

    def __init__(self, aside: Aside) -> None:
        super().__init__(aside)
        if not self.config.every:
            raise InputError(
                f"{type(self.config).__name__}(every=0): the monitor would read nothing; pass every=10, for example"
            )

    def due(self, step: int, last_step: int) -> bool:
        """Every so many steps."""
        return self.config.every > 0 and step % self.config.every == 0

    def looker(self, step: int) -> Looker | None:
        """The monitor itself."""
        return self

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """A pass over ``batch`` begins."""

    def record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """A block is over; its states are not looked at unless a monitor overrides this."""

    def refuse(self, stack: Stack, block: Block, error: CaptureError) -> None:
        """The block is none; nothing is lost unless a monitor overrides this."""

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """The pass is over."""


class Intervention(Monitor):
    """A monitor that may act on the run. It reads what the monitors measured, and knows none of them.

    Attributes:
        dormant: whether it waits until another intervention switches it on.
    """

    dormant: bool = False

    def gradients_ready(self, step: int, readings: Sequence[Reading]) -> None:
        """The gradients of the step are there, and the optimizer has not used them.

        Every process calls it, and what it does has to be the same on all of them.

        Args:
            step: of the optimizer.
            readings: made at the end of the step before and at the beginning of this one. The main process has them, and the
                others get none: an intervention that follows them has to tell the others.
        """

    def step_made(self) -> None:
        """The optimizer has made its step."""

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint with ``step`` optimizer steps behind it was written to ``folder``. Every process calls it."""


def require_parts(monitors: object) -> None:
    """Raise `InputError` unless it is a list or a tuple of parts of a run."""
    if not isinstance(monitors, (list, tuple)):
        raise InputError(f"monitors={type(monitors).__name__}: pass a list of monitors, such as [SpectralMonitor()]")
    if wrong := [part for part in monitors if not isinstance(part, Monitor)]:
        raise InputError(
            f"monitors has a {type(wrong[0]).__name__}: pass monitors, such as SpectralMonitor(MonitorConfig()) or "
            "DivergenceGuard(GuardConfig())"
        )
