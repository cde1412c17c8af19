"""A report's dict -> what both templates show: plain text, tables and figures, nothing escaped yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_rksp.json_data import finite, items, section
from hf_rksp.report.kit.reading import layers_of, margins, stacks_of, threshold
from hf_rksp.report.kit.sections import Sections
from hf_rksp.report.kit.text import DASH, anything, clean, count, large, line, number, paths, seconds, share, size, span
from hf_rksp.report.profile.definitions import PAPER, PUBLISHED, definitions
from hf_rksp.report.profile.figures import depth_figures, planes
from hf_rksp.report.profile.lead import key_numbers, reading
from hf_rksp.report.profile.schema import check_version
from hf_rksp.report.profile.tables import AGGREGATE_HEADS, aggregate_rows, groups, layer_rows, setup_blocks

BANDS = {"low": "Low", "elevated": "Elevated", "high": "High", "not_assessable": "Not assessable"}
#: How model types are spelled, for models that have no name of their own.
_FAMILIES = {
    "gpt2": "GPT-2",
    "gpt2_kan": "GPT-2 KAN",
    "llama": "Llama",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "mixtral": "Mixtral",
    "olmoe": "OLMoE",
    "qwen2": "Qwen2",
    "vit": "ViT",
}
_OUTCOMES = {"fail": "Fail", "warn": "Warning", "info": "Info", "pass": "Pass"}
_PHASES = {"forward": "forward passes", "moments": "second moments", "spectra": "spectra and standard errors"}


def view(data: Mapping[str, Any], sections: Sections = ()) -> dict[str, Any]:
    """Everything that a template needs. ``sections`` are shown after the profile.

    Raises:
        SchemaError: ``data`` is not a report of this schema version.
    """
    check_version(data)
    profile, verdict = section(data, "profile"), section(data, "verdict")
    model, setup, layers = section(profile, "model"), section(profile, "setup"), layers_of(profile)
    digits = {4: "four", 6: "six"}.get(setup.get("eigenvalue_digits", 6), "fewer")
    return {
        "title": title_of(model),
        "facts": _facts(model, setup, layers),
        "notes": [line(note, 1000) for note in items(profile, "notes")],
        "key_numbers": key_numbers(profile),
        "reading": reading(margins(profile)),
        "verdict": _verdict(verdict),
        "sections": sections,
        "checks": _checks(verdict),
        "planes": planes(profile),
        "depth": depth_figures(profile, verdict),
        "groups": groups(),
        "rows": layer_rows(profile),
        "identity": sum(layer.get("uninformative") is True for layer in layers),
        "informative": _informative(layers),
        "aggregate_heads": AGGREGATE_HEADS,
        "aggregates": aggregate_rows(profile),
        "blocks": setup_blocks(profile, verdict),
        "definitions": definitions(margins(profile)),
        "published": PUBLISHED,
        "paper": PAPER,
        "command": clean(setup["command"], 20_000).strip() if setup.get("command") else "",
        "cost": _cost(section(profile, "cost")),
        "version": line(section(setup, "versions").get("hf_rksp") or "", 40),
        "date": re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*Z$", r"\1 \2 UTC", line(setup.get("date") or "", 40)),
        "made": "report schema 2 · rendered from report.json alone, which holds every number unrounded (eigenvalues and "
        f"residuals to {digits} digits).",
    }


def _informative(layers: list[Mapping[str, Any]]) -> str:
    """Which layers the aggregates are over."""
    left_out = sum(layer.get("uninformative") is True for layer in layers)
    counted = len(layers) - left_out
    text = f"{counted} informative {'layer' if counted == 1 else 'layers'}"
    if left_out:
        text += f"; {left_out} identity {'block is' if left_out == 1 else 'blocks are'} left out"
    return text


def _facts(
    model: Mapping[str, Any], setup: Mapping[str, Any], layers: list[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The line under the title: what was profiled."""
    tokens = [number for layer in layers if (number := finite(layer.get("tokens"))) is not None]
    stacks = [str(len(members)) for members in stacks_of(layers).values()]
    facts = [
        ("name", _name(model) if title_of(model) != _name(model) else ""),
        ("class", line(model.get("class") or "", 80)),
        ("parameters", large(model.get("parameters"))),
        ("weights", line(model.get("source") or "not stated", 80) + _declared(model)),
        ("blocks", " + ".join(stacks or ["0"]) + (f" in {len(stacks)} stacks" if len(stacks) > 1 else "")),
        ("tokens", count(max(tokens)) if tokens else DASH),
        ("dtype", line(setup.get("dtype") or model.get("dtype") or "", 40)),
        ("revision", line(model.get("revision") or "", 60)),
    ]
    return [(name, value) for name, value in facts if value and value != DASH]


def _name(model: Mapping[str, Any]) -> str:
    return line(model.get("name") or model.get("class") or "unnamed model")


def title_of(model: Mapping[str, Any]) -> str:
    """What the page is called: the title if the model has one, its architecture and size if the weights are random, its name."""
    if model.get("title"):
        return line(model["title"])
    family, size = _FAMILIES.get(str(model.get("model_type"))), large(model.get("parameters"))
    if model.get("source") == "initialised" and model.get("init") == model.get("name") and family and size != DASH:
        return f"{family} {size.replace(' ', '')}, random weights"
    return _name(model)


def _declared(model: Mapping[str, Any]) -> str:
    return f" (declared with {line(model['declared'], 40)})" if model.get("declared") else ""


def _verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    band, by_thresholds = str(verdict.get("band")), str(verdict.get("band_by_thresholds"))
    band = band if band in BANDS else "not_assessable"
    score, ends = finite(verdict.get("score")), [finite(end) for end in items(verdict, "interval")]
    return {
        "band": band,
        "title": BANDS[band],
        "score": share(score),
        "interval": span(verdict.get("interval"), share),
        "by_thresholds": BANDS.get(by_thresholds) if by_thresholds != band else None,
        "reasons": [line(reason, 1000) for reason in items(verdict, "reasons")],
        "conditions": [line(condition, 1000) for condition in items(verdict, "conditions")],
        "value": score,
        "ends": ends if len(ends) == 2 and None not in ends else None,
        "safe": threshold(verdict, "safe_near_unit_mass"),
        "high": threshold(verdict, "high_near_unit_mass"),
    }


def _checks(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The checks, gravest first, and how many came out how."""
    rows = []
    for check in items(verdict, "checks"):
        if not isinstance(check, Mapping):
            continue
        outcome = str(check.get("outcome"))
        outcome = outcome if outcome in _OUTCOMES else "info"
        rows.append(
            {
                "id": line(check.get("id") or "", 80),
                "title": line(check.get("title") or ""),
                "value": number(check.get("value")),
                "threshold": line(check.get("threshold") or DASH),
                "outcome": outcome,
                "label": _OUTCOMES[outcome],
                "layers": paths(items(check, "layers")) or DASH,
                "remedy": line(check.get("remedy") or "", 600),
            }
        )
    rows.sort(key=lambda row: list(_OUTCOMES).index(str(row["outcome"])))
    counts = [(name, label, sum(row["outcome"] == name for row in rows)) for name, label in _OUTCOMES.items()]
    return {"rows": rows, "counts": [entry for entry in counts if entry[2]]}


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Time of each phase with its share of the whole, peak memory, and whatever else was recorded."""
    spent = {str(name): value for name, value in section(cost, "seconds").items()}
    known = {name: finite(value) for name, value in spent.items() if name not in ("profile", "total")}
    parts = {name: value for name, value in known.items() if value is not None}
    total = finite(spent.get("total")) or finite(spent.get("profile")) or sum(parts.values())
    rows = [
        (_PHASES.get(name, line(name, 80)), seconds(value), round(100 * min(1.0, value / total), 1) if total else 0)
        for name, value in parts.items()
    ]
    if total and (rest := total - sum(parts.values())) > 0.005 * total:
        rows.append(("everything else", seconds(rest), round(100 * rest / total, 1)))
    others = [
        (line(n, 80).replace("_", " "), anything(v))
        for n, v in cost.items()
        if n not in ("seconds", "peak_memory_bytes")
    ]
    return {
        "rows": rows,
        "total": seconds(total) if spent else DASH,
        "memory": size(cost.get("peak_memory_bytes")),
        "others": others,
    }
