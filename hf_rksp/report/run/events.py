"""What happened at which step: events as marks over the loss, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rksp.history.schema import Row
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import dot
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import count, line
from hf_rksp.report.run.curves import PLOT, Curve, figure, spreads
from hf_rksp.report.run.numbers import Run

#: Characters of the sentence of an event. A run that was stopped says what was tried, and what to do next.
LONGEST = 900
#: Height of the lane of one part, and lanes at most; parts beyond share the last one.
_LANE, _LANES = 16, 8
#: Letters that fit beside a lane.
_WIDE = 9
#: Events up to which each has a line through the chart.
_LINES = 40
#: Rows of the table at its beginning, and at its end.
_ROWS = 100


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        run: place of its run.
        step, by, what, layer, text: as recorded, safe to show.
        back: the step that it goes back to.
        gone: whether the run went back to a step before it.
    """

    run: int
    step: int
    by: str
    what: str
    layer: str
    text: str
    back: int | None
    gone: bool


def events_of(run: Run, place: int = 0) -> list[Event]:
    """The events in the order of the file; those after a step that a later event goes back to are of an abandoned attempt."""
    back = [row["to"] if isinstance(row.get("to"), int) else None for row in run.events]
    return [
        Event(
            place,
            row["step"],
            _word(row, "by"),
            _word(row, "what"),
            line(row.get("layer") or "", 80),
            line(row.get("text") or "", LONGEST),
            back[at],
            any(to is not None and to < row["step"] for to in back[at + 1 :]),
        )
        for at, row in enumerate(run.events)
    ]


def _word(row: Row, name: str) -> str:
    return line(row.get(name) or "", 40).replace("_", " ")


def happened_figures(runs: Sequence[Run], steps: Scale) -> list[tuple[Figure, list[int]]]:
    """Loss and gradient norm over the steps, under the marks of all events; and which runs are in each."""
    events = [event for place, run in enumerate(runs) for event in events_of(run, place)]
    names = [run.name for run in runs]
    loss, gradient = ([run.logged(key) for run in runs] for key in ("loss", "grad_norm"))
    note = "As logged: each value is the mean since the line before."
    gone = [[run.abandoned(key) for run in runs] for key in ("loss", "grad_norm")]
    curves = [
        Curve("loss", "Events and loss" if events else "Loss", "", note, loss, gone[0], spreads(loss)),
        Curve("grad_norm", "Gradient norm", "powers of ten", "As logged, before clipping.", gradient, gone[1], True),
    ]
    lanes = list(dict.fromkeys(event.by for event in events))[:_LANES]
    found = []
    for curve in curves:
        if any(curve.series) or (curve.key == "loss" and events):
            lift = _LANE * len(lanes) if curve.key == "loss" else 0
            over = _through(events, steps) + (_marks(events, lanes, steps, lift) if lift else "")
            found.append((figure(curve, steps, names, over, lift), curve.runs))
    return found


def _through(events: Sequence[Event], steps: Scale) -> str:
    """A line through the chart at each event, if there are few."""
    if len(events) > _LINES:
        return ""
    return "".join(
        svg.segment(
            steps(event.step),
            PLOT.top,
            steps(event.step),
            PLOT.base,
            f"when k{event.run}{' gone' if event.gone else ''}",
        )
        for event in events
    )


def _marks(events: Sequence[Event], lanes: Sequence[str], steps: Scale, lift: int) -> str:
    """A lane per part, above the chart; an arrow to the left is an event that goes back."""
    parts = []
    heights = {by: _LANE * (place + 1) - lift - 6 for place, by in enumerate(lanes)}
    for by, y in heights.items():
        parts.append(svg.segment(PLOT.left, y, PLOT.right, y, "grid"))
        parts.append(svg.text(PLOT.left - 7, y + 4, by if len(by) <= _WIDE else f"{by[: _WIDE - 1]}…", "small", "e"))
    for event in events:
        x, y = steps(event.step), heights.get(event.by, -6)
        shape = (
            f'<path class="back" d="M{coordinate(x - 6)} {y}l8-5v10z"/>'
            if event.back is not None
            else dot(x, y, 4, "spot")
        )
        label = f"step {count(event.step)}, {event.by}: {event.what}. {event.text}"
        kind = f"event k{event.run}{' gone' if event.gone else ''}"
        parts.append(f'<g class="{kind}"><title>{svg.escape(label)}</title>{shape}</g>')
    return "".join(parts)


@dataclass(frozen=True)
class EventTable:
    """Rows of step, run, part, what, layer, text, whether abandoned; and how many rows are left out in the middle."""

    rows: list[Event]
    left_out: int


def event_table(runs: Sequence[Run]) -> EventTable:
    """All events in the order of the files; of very many the first and the last."""
    events = [event for place, run in enumerate(runs) for event in events_of(run, place)]
    if len(events) <= 2 * _ROWS:
        return EventTable(events, 0)
    return EventTable(events[:_ROWS] + events[-_ROWS:], len(events) - 2 * _ROWS)
