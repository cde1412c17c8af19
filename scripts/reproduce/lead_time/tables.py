"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.reproduce.harness.intervals import share
from scripts.reproduce.harness.markdown import table

from .scores import DWELL, FORMS, alarms_above, lasting, threshold
from .signals import SIGNALS, forms
from .tools import SCALES, TOOLS, key

Row = dict[str, Any]
#: Alarms of each row: the steps of the readings that have one.
Alarms = list[list[int]]
#: Share of healthy runs that may have an alarm.
FALSE = 0.05
#: Seeds from which on a run is for tuning.
TUNING = 500
#: Monitors of the package that raise alarms by a rule of their own.
_MONITORS = ("spectrum", "alignment", "attention", "curvature")


def fails(row: Row) -> bool:
    """A reported run that fails in the way of its fault, or of its learning rate."""
    wanted = row["fault"] and row["failure"] is not None and row["seed"] < TUNING
    return bool(wanted and (row["begin"] is None or row["failure"] >= row["begin"]))


def healthy(row: Row) -> bool:
    """A run that does not fail, and into which no fault was put."""
    return row["failure"] is None and row["begin"] is None


def network(row: Row) -> str:
    """Runs of one network and learning rate share a threshold."""
    return "recall" if row["way"] == "rate" else "llama"


def alarms(rows: Sequence[Row], signal: str, every: int) -> dict[str, Alarms]:
    """Of each form of a signal of ours, with thresholds from the healthy tuning runs."""
    of_rows, found = [forms(row, signal, every) for row in rows], {}
    for form in FORMS if SIGNALS[signal].changes else FORMS[:1]:
        scored = [lasting(each[form]) for each in of_rows]
        above = {}
        for name in {network(row) for row in rows}:
            tuning = [run for run, row in zip(scored, rows, strict=True) if network(row) == name and tunes(row)]
            above[name] = threshold(tuning, FALSE)
        found[form] = [alarms_above(run, above[network(row)], every) for run, row in zip(scored, rows, strict=True)]
    return found


def tunes(row: Row) -> bool:
    """A healthy run that sets a threshold."""
    return healthy(row) and row["seed"] >= TUNING


def with_thresholds(rows: Sequence[Row]) -> list[Row]:
    """The watched runs, if failures are among them and healthy runs that set thresholds; else none."""
    watched = [row for row in rows if row["signals"]]
    return watched if any(map(tunes, watched)) and any(map(fails, watched)) else []


@dataclass(frozen=True)
class Multiple:
    """Of a tool's own threshold, for one network: the least one that few enough tuning runs are above, or the largest one.

    Attributes:
        scale: see `tools.SCALES`.
        above, of: tuning runs that are above it, and tuning runs.
    """

    scale: float
    above: int
    of: int

    @property
    def few(self) -> bool:
        """Whether a new healthy run has an alarm with a probability of at most `FALSE`."""
        return self.above + 1 <= FALSE * (self.of + 1)


def multiples(rows: Sequence[Row], tool: str) -> dict[str, Multiple]:
    """By network."""
    found = {}
    for name in sorted({network(row) for row in rows}):
        tuning = [row["tools"][tool] for row in rows if network(row) == name and tunes(row)]
        each = [Multiple(scale, sum(bool(run[key(scale)]) for run in tuning), len(tuning)) for scale in SCALES]
        found[name] = next((one for one in each if one.few), each[-1])
    return found


def alarms_of_tool(rows: Sequence[Row], tool: str, tuned: bool) -> Alarms:
    """Of a tool that judges each step: at its own threshold, or at that of `multiples`."""
    scales = {name: one.scale if tuned else 1.0 for name, one in multiples(rows, tool).items()}
    return [row["tools"][tool][key(scales[network(row)])] for row in rows]


def lead(row: Row, steps: Sequence[int], every: int, behind: int) -> int | None:
    """Steps from the first warning to the failure of a run that fails; ``None`` without a warning.

    A warning is an alarm whose readings are all from after the beginning of the fault (the first tenth of a run at a learning rate
    that is too high), and that comes at least one reading before the failure: the curvature is read after a step and the rest
    before it. A signal with an alarm on already when the fault begins has not warned.

    Args:
        behind: steps from the first reading of an alarm to the alarm.
    """
    begin = 0.1 * row["planned"] if row["begin"] is None else row["begin"] + behind
    if any(begin - DWELL * every <= at < begin for at in steps):
        return None
    found = [at for at in steps if begin <= at <= row["failure"] - every]
    return row["failure"] - found[0] if found else None


@dataclass(frozen=True)
class Line:
    """What one signal says, at one threshold.

    Attributes:
        name: of the signal, the monitor or the tool.
        form: how it was judged; empty if there is one way.
        leads: place of a run that fails -> steps from the first warning to the failure, ``None`` without a warning.
        false: of the healthy reported runs, whether there is an alarm.
        early: of the reported runs with a fault, whether there is an alarm before it.
    """

    name: str
    form: str
    leads: dict[int, int | None]
    false: list[bool]
    early: list[bool]

    @property
    def label(self) -> str:
        """Name and form."""
        return f"{self.name}, {self.form}" if self.form else self.name


def line(name: str, rows: Sequence[Row], found: Alarms, every: int, form: str = "", each_step: bool = False) -> Line:
    """Judge the alarms of a signal, or of a tool that judges each step."""
    behind = 0 if each_step else (DWELL - 1) * every
    return Line(
        name,
        form,
        {place: lead(row, found[place], every, behind) for place, row in enumerate(rows) if fails(row)},
        [bool(steps) for steps, row in zip(found, rows, strict=True) if healthy(row) and not tunes(row)],
        [
            any(at < row["begin"] for at in steps)
            for steps, row in zip(found, rows, strict=True)
            if row["begin"] is not None
        ],
    )


def lines(rows: Sequence[Row], every: int) -> Iterator[Line]:
    """Every signal in both forms, then the rules that come with the monitors, then the tools that judge each step."""
    for signal in SIGNALS:
        for form, found in alarms(rows, signal, every).items():
            yield line(signal, rows, found, every, form)
    for monitor in _MONITORS:
        found = [[step for step, by, _ in row["alarms"] if by == monitor] for row in rows]
        yield line(f"hf_rksp, rule of the {monitor} monitor", rows, found, every)
    for tool in TOOLS:
        for kind, tuned in (("its own threshold", False), ("threshold chosen as above", True)):
            yield line(tool, rows, alarms_of_tool(rows, tool, tuned), every, kind, each_step=True)


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """How the runs ended, and what each signal says of them."""
    text = [*_ends(rows), ""]
    if judged := with_thresholds(rows):
        text += [_thresholds(rows), "", *_warnings(judged, settings["every"]), ""]
    return "\n".join(text).rstrip() + "\n"


def _ends(rows: list[Row]) -> list[str]:
    ends = []
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        after = [row["failure"] - (row["begin"] or 0) for row in mine if fails(row)]
        ends.append(
            [
                way, str(len(mine)), str(len(after)), str(sum(healthy(row) and not tunes(row) for row in mine)),
                str(sum(map(tunes, mine))), str(sum(row["begin"] is not None and row["failure"] is None for row in mine)),
                str(sum(row["failure"] is not None and not fails(row) and row["seed"] < TUNING for row in mine)),
                str(sum(row["failure"] is not None and row["seed"] >= TUNING for row in mine)),
                ", ".join(map(str, sorted(after))) or "-",
            ]
        )  # fmt: skip
    heads = [
        "way", "runs", "fail", "healthy", "healthy, for thresholds", "survive their fault", "fail otherwise",
        "fail, for thresholds", "steps from the fault (rate: the beginning) to the failure",
    ]  # fmt: skip
    return table(heads, ends)


def _thresholds(rows: Sequence[Row]) -> str:
    counts = {name: sum(tunes(row) and network(row) == name for row in rows) for name in ("llama", "recall")}
    return f"Thresholds: from {counts['llama']} healthy runs of LLaMA and {counts['recall']} of recall."


def _warnings(rows: list[Row], every: int) -> list[str]:
    found = list(lines(rows, every))
    ways = list(dict.fromkeys(row["way"] for row in rows if fails(row)))
    best = {place: max((one.leads[place] or 0 for one in found), default=0) for place in found[0].leads}
    cells = []
    for one in found:
        caught = [value for value in one.leads.values() if value is not None]
        by_way = ([value for place, value in one.leads.items() if rows[place]["way"] == way] for way in ways)
        cells.append(
            [
                one.label, share(sum(one.false), len(one.false)).text(2), f"{sum(one.early)} of {len(one.early)}",
                f"{len(caught)} of {len(one.leads)}", *(_cell(leads, rows[0]["planned"]) for leads in by_way),
                str(sum(value is not None and value == best[place] for place, value in one.leads.items())),
            ]
        )  # fmt: skip
    heads = [
        "signal", "healthy runs with an alarm", "alarm before the fault", "failures with a warning",
        *(f"{way}: warned, median lead in steps (of the run)" for way in ways), "first in",
    ]  # fmt: skip
    return [*table(heads, cells), "", *_at_the_ends(rows)]


def _at_the_ends(rows: Sequence[Row]) -> list[str]:
    """Where a multiple of a tool's threshold may not give the wanted share of false alarms: no further one was tried."""
    found = [
        f"- {tool}, {name}: {one.above} of {one.of} healthy runs are above {one.scale:g} times its threshold."
        for tool in TOOLS
        for name, one in multiples(rows, tool).items()
        if one.scale in (SCALES[0], SCALES[-1])
    ]
    return ["At the ends of the multiples that were tried:", "", *found] if found else []


def _cell(leads: list[int | None], planned: int) -> str:
    known = [value for value in leads if value is not None]
    if not known:
        return f"0 of {len(leads)}"
    middle = statistics.median(known)
    return f"{len(known)} of {len(leads)}, {middle:.0f} ({middle / planned:.1%})"
