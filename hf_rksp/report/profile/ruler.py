"""The score on its scale from 0 to 1, with interval and thresholds, for the head of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.report.kit import svg
from hf_rksp.report.kit.svg import Scale, coordinate
from hf_rksp.report.kit.text import share

_WIDTH, _LEFT, _RIGHT, _LINE = 460, 14, 446, 44


def ruler(verdict: Mapping[str, Any]) -> str:
    """An inline ``<svg>``; empty without a score."""
    score, ends, safe, high = (verdict[name] for name in ("value", "ends", "safe", "high"))
    if score is None:
        return ""
    scale = Scale(0, 1, _LEFT, _RIGHT)
    stops = [0.0, *sorted(limit for limit in (safe, high) if limit is not None and 0 < limit < 1), 1.0]
    names = ("low", "elevated", "high")
    # Colours are a verdict: without a verdict the zones are grey.
    kinds = names if len(stops) == 4 and verdict["band"] != "not_assessable" else ("slate",) * 3
    parts = []
    for kind, name, start, end in zip(kinds, names, stops, stops[1:], strict=False):
        x, width = scale(start) + 1, scale(end) - scale(start) - 2
        parts.append(
            f'<rect class="z-{kind}" x="{coordinate(x)}" y="{_LINE - 5}" width="{coordinate(width)}" height="10" rx="3"/>'
        )
        if len(stops) == 4:
            parts.append(svg.text(x + width / 2, _LINE + 40, name, "zone", "m"))
    for stop in stops:
        parts.append(svg.text(scale(stop), _LINE + 22, f"{stop:g}", anchor="m"))
    if ends:
        low, top = scale(ends[0]), scale(ends[1])
        ends_of_bar = "".join(f"M{coordinate(x)} {_LINE - 12}v24" for x in (low, top))
        parts.append(f'<path class="reach" d="{ends_of_bar}M{coordinate(low)} {_LINE}H{coordinate(top)}"/>')
    parts.append(f'<circle class="here" cx="{coordinate(scale(score))}" cy="{_LINE}" r="6.5"/>')
    x = min(max(scale(score), 26), _WIDTH - 26)
    parts.append(svg.text(x, _LINE - 20, share(score), "score", "m"))
    text = f"Score {share(score)} on a scale from 0 to 1" + (f", 95% interval {verdict['interval']}" if ends else "")
    text += "".join(
        f", {name} {limit:g}" for name, limit in (("low below", safe), ("high above", high)) if limit is not None
    )
    return (
        f'<svg class="fig ruler" viewBox="0 0 {_WIDTH} 90" role="img" aria-labelledby="ruler-t"><title id="ruler-t">'
        f"{svg.escape(text)}</title>{''.join(parts)}</svg>"
    )
