"""P(lost) against the learning rate, with its interval, the planned rate and what was measured on the same axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rksp.report.kit import svg
from hf_rksp.report.kit.chart import Plot, polyline
from hf_rksp.report.kit.html import template_text
from hf_rksp.report.kit.svg import Figure, coordinate
from hf_rksp.report.kit.text import line
from hf_rksp.risk.calibrated import names_rate

WIDTH, HEIGHT = 900, 372
PLOT = Plot(left=62, right=880, top=64, base=280, edge=WIDTH)
#: Measured learning rates that are marked below the axis: key of the numbers, and words.
MARKS = (
    ("critical_lr", "one step raises the loss"),
    ("coordinate_lr", "one step changes a block by 10%"),
)


def figure(data: Mapping[str, Any]) -> Figure | None:
    """The chart of the JSON of ``rksp risk``; ``None`` if nothing could be assessed."""
    curve: Sequence[Sequence[float]] = data.get("curve") or ()
    if not curve:
        return None
    measured = [
        (float(value), words) for key, words in MARKS if (value := (data.get("features") or {}).get(key)) is not None
    ]
    planned, safe = data.get("lr"), data.get("lr_max") if names_rate(curve) else None
    rates = [point[0] for point in curve] + [rate for rate, _ in measured] + ([planned] if planned else [])
    low, high = math.log10(min(rates)) - 0.1, math.log10(max(rates)) + 0.1
    x, y = PLOT.x(low, high, log=True), PLOT.y(0.0, 1.0)
    powers = range(math.ceil(low), math.floor(high) + 1)
    body = PLOT.y_axis([(y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)], "P(lost)", (4, 48))
    body += PLOT.x_axis([(x(10.0**power), f"1e{power}") for power in powers], "")
    band = [(x(rate), y(top)) for rate, _, _, top in curve]
    band += [(x(rate), y(bottom)) for rate, _, bottom, _ in reversed(curve)]
    body += f'<path class="band" d="M{"L".join(f"{coordinate(a)} {coordinate(b)}" for a, b in band)}Z"/>'
    body += polyline([(x(rate), y(p)) for rate, p, _, _ in curve], "risk")
    if safe:
        body += _upright(x(safe), f"5% at {safe:.2g}", 40, "safe")
    if planned:
        body += _upright(x(planned), f"planned {planned:.2g}", 18, "planned")
    for place, (rate, words) in enumerate(sorted(measured)):
        at, below = x(rate), PLOT.base + 34 + 22 * place
        body += svg.segment(at, PLOT.base, at, below - 6, "axis")
        right = at > (PLOT.left + PLOT.right) / 2
        body += svg.text(at + (-6 if right else 6), below, f"{rate:.2g}: {words}", "small", "e" if right else "")
    name = line(str((data.get("model") or {}).get("name") or "the model"), 60)
    return Figure(
        "p-lost",
        "Probability of being lost against the peak learning rate",
        "The band is the 90% interval of the curve: it shows how much the choice of the runs behind the model matters. Marks below "
        "the axis are measured learning rates, in one step and without warm-up. None of them is a limit by itself.",
        f"A curve that rises from 0 to 1. For {name} it passes 5% at {data['lr_max']:.2g}.",
        WIDTH,
        HEIGHT,
        body,
        template_text("hf_rksp.report.risk", "curve.css"),
    )


def _upright(at: float, words: str, above: float, kind: str) -> str:
    right = at > (PLOT.left + PLOT.right) / 2
    label = svg.text(at + (-6 if right else 6), above + 4, words, anchor="e" if right else "")
    return f'<g class="{kind}">{svg.segment(at, above - 8, at, PLOT.base, kind)}{label}</g>'
