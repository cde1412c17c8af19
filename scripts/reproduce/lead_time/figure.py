"""One picture of who warns first: each signal by each way to fail, at equal false alarms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hf_rksp.report.kit.svg import Figure, text
from scripts.reproduce.harness.intervals import share
from scripts.reproduce.lead_time.tables import FALSE, Line, Row, fails, lines

_LABEL, _CELL, _HEIGHT, _TOP, _GAP = 264, 62, 22, 44, 14
#: Colour of a cell by the share of failures with a warning: from the ground of the figure to this one.
_FULL = "#2a7fb8"
_BAD = "#cf4a4a"
#: Column behind the ways: healthy runs with an alarm.
_FALSE = "false"
_LEGEND = (
    "Colour: share of the failures with a warning before. Number: steps from the warning to the failure, in the median.",
    "False: share of the healthy runs with an alarm; red if its 95% interval lies above 5%.",
)


def figure(rows: Sequence[Row], every: int) -> Figure:
    """Share of failures with a warning as colour, and the median lead in steps as a number.

    Each signal has two blocks of columns: its level and its change; another tool its own threshold and one that was chosen; a
    monitor of the package the rule that it comes with.

    Args:
        rows: of `tables.with_thresholds`.
        every: steps from one reading to the next.
    """
    found = list(lines(rows, every))
    ways = list(dict.fromkeys(row["way"] for row in rows if fails(row)))
    names: dict[str, list[Line]] = {}
    for one in found:
        names.setdefault(one.name, []).append(one)
    block = (len(ways) + 1) * _CELL
    parts, said = [], []
    heads = ("level, or the tool's own threshold", "change, or a threshold chosen for 5% false alarms")
    for side, head in enumerate(heads):
        left = _LABEL + side * (block + _GAP)
        parts.append(text(left, 12, head, "b"))
        parts += [
            text(left + (place + 0.5) * _CELL - 2, 32, way, "m", "m") for place, way in enumerate([*ways, _FALSE])
        ]
    for place, (name, both) in enumerate(names.items()):
        y = _TOP + place * (_HEIGHT + 3)
        parts.append(text(_LABEL - 10, y + 15, name.removeprefix("hf_rksp, "), anchor="e"))
        for side, one in enumerate(both):
            left = _LABEL + side * (block + _GAP)
            for column, way in enumerate(ways):
                leads = [lead for at, lead in one.leads.items() if rows[at]["way"] == way]
                parts.append(_warned(left + column * _CELL, y, leads))
            parts.append(_false(left + len(ways) * _CELL, y, one.false))
            caught = sum(lead is not None for lead in one.leads.values())
            said.append(f"{one.label}: {caught} of {len(one.leads)}, false {sum(one.false)} of {len(one.false)}")
    bottom = _TOP + len(names) * (_HEIGHT + 3) + 14
    parts += [text(_LABEL, bottom + 14 * place, line) for place, line in enumerate(_LEGEND)]
    return Figure(
        "who_warns_first",
        "Who warns first?",
        " ".join(_LEGEND),
        "; ".join(said),
        _LABEL + 2 * block + _GAP,
        bottom + 14 * len(_LEGEND),
        "".join(parts),
    )


def _warned(x: float, y: float, leads: Sequence[int | None]) -> str:
    known = [lead for lead in leads if lead is not None]
    part = len(known) / len(leads) if leads else 0.0
    number = f"{statistics.median(known):.0f}" if known else "-"
    return _cell(x, y, _FULL, part, number)


def _false(x: float, y: float, alarms: Sequence[bool]) -> str:
    """Red if the share is above the wanted one beyond doubt."""
    if not alarms:
        return _cell(x, y, _BAD, 0.0, "-")
    whole = share(sum(alarms), len(alarms))
    return _cell(x, y, _BAD, 0.8 if whole.low > FALSE else 0.0, f"{whole.value:.0%}")


def _cell(x: float, y: float, colour: str, strength: float, number: str) -> str:
    white = ' style="fill:#fff"' if strength > 0.55 else ""
    size = f'width="{_CELL - 4}" height="{_HEIGHT}" rx="3"'
    return (
        f'<rect x="{x:g}" y="{y:g}" {size} fill="{colour}" fill-opacity="{max(strength, 0.05):.2f}"/>'
        f'<text x="{x + _CELL / 2 - 2:g}" y="{y + 15:g}" class="m"{white}>{number}</text>'
    )
