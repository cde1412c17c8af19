"""One HTML file from the JSON of ``rksp risk``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_rksp.report.kit import html
from hf_rksp.report.kit.html import Panel
from hf_rksp.report.kit.text import line
from hf_rksp.report.risk import curve
from hf_rksp.risk.calibrated import NO_ANSWER, NO_RATE, decisive, effect, names_rate, percent


def render_risk(data: Mapping[str, Any]) -> str:
    """The page; equal data give equal bytes."""
    model, plan = data.get("model") or {}, data.get("plan") or {}
    name = line(str(model.get("name") or model.get("class") or "model"), 80)
    figure = curve.figure(data)
    panels = [
        Panel("answer", "Answer"),
        *([Panel("decided", "What decided it")] if data.get("contributions") else []),
        Panel("measured", "Measured"),
        Panel("plan", "Plan"),
    ]
    return html.page_of_panels(
        "hf_rksp.report.risk",
        panels,
        "risk.js",
        [figure] if figure else [],
        head=f"{name} · risk before training · hf_rksp",
        kind="Risk before training",
        date="",
        title=name,
        facts=[(key, line(str(model[key]), 60)) for key in ("class", "source") if model.get(key)],
        made="rendered from the JSON of rksp risk alone.",
        version="",
        data="",
        sentences=sentences(data),
        chart=html.drawn([figure])[0] if figure else None,
        status=str(data.get("status")),
        reasons=[line(str(reason), 200) for reason in data.get("reasons") or ()],
        behind=[line(str(text), 400) for text in data.get("behind") or ()],
        decided=[(line(str(one["title"]), 80), effect(one["factor"])) for one in data.get("contributions") or ()],
        numbers=[(key.replace("_", " "), _number(value)) for key, value in (data.get("features") or {}).items()],
        planned=[(key.replace("_", " "), line(str(value), 40)) for key, value in plan.items()],
        notes=[line(str(note), 300) for note in data.get("notes") or ()],
    )


def sentences(data: Mapping[str, Any]) -> list[str]:
    """The answer in words."""
    if data.get("lr_max") is None:
        return ["The risk of this run cannot be assessed."]
    found, near = [], names_rate(data.get("curve") or ())
    p, interval = data.get("p_lost"), data.get("p_lost_interval")
    if p is not None and interval:
        found.append(
            f"A run at learning rate {data['lr']:g} is lost with probability {percent(p)} (90% interval {percent(interval[0])} "
            f"to {percent(interval[1])})."
        )
        if not decisive(interval, near):
            found.append(NO_ANSWER)
    low, half = f"{data['lr_max']:.2g}", f"{data['lr_half']:.2g}"
    if near:
        found.append(f"The probability is below 5% up to a learning rate of {low}. It is 50% at {half}.")
    else:
        found += [NO_RATE, f"By the fit alone the probability is 5% at {low} and 50% at {half}."]
    return found


def write_risk(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page.

    Raises:
        OutputError: the file cannot be written.
    """
    return html.write_page(render_risk(data), path)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
