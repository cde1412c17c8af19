"""The table of what works: rows of the trials -> support.json -> support.md."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUTCOMES = {
    "works": "Profiled with the model's own states and the right number of tokens; KSS ran in all five training steps.",
    "works with a note": "The same, with a limit that the product itself says.",
    "refused": "The product refuses in one sentence, before any number is given.",
    "not tried": "The model could not be built or fed at this size here.",
    "fault": "Wrong, or an exception that is not the product's own. None may be left in a published table.",
}
FAMILIES = {
    "text": "Text",
    "text to text": "Text to text",
    "image": "Images",
    "video": "Videos",
    "audio": "Audio",
    "audio to text": "Audio to text",
    "text and image": "Text and images",
    "text and video": "Text and videos",
    "text and audio": "Text and audio",
    "series": "Time series",
    "other": "Other inputs",
}


def publish(rows: Mapping[str, Mapping[str, Any]], types: Sequence[str], folder: Path) -> None:
    """Write support.json and support.md into ``folder``."""
    data = collected(rows, types)
    for name, text in (
        ("support.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n"),
        ("support.md", render(data)),
    ):
        aside = folder / f".{name}.new"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, folder / name)


def collected(rows: Mapping[str, Mapping[str, Any]], types: Sequence[str]) -> dict[str, Any]:
    """What support.json holds."""
    from hf_rksp.machine import versions

    found = {name: _entry(rows, name) for name in sorted(types)}
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "counts": {outcome: sum(entry["outcome"] == outcome for entry in found.values()) for outcome in OUTCOMES},
        "types": found,
    }


_LEFT = {"outcome": "not tried", "reason": "not reached yet"}


def _entry(rows: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    row = rows.get(name, _LEFT)
    if row["outcome"] == "part":
        whole = rows.get(row["whole"], _LEFT)
        reason = f"no model of its own: tried as a part of {row['whole']}"
        told = f"{reason}; {whole['reason']}" if whole.get("reason") else reason
        return {"outcome": whole["outcome"], "reason": told, "family": family(whole), "class": whole.get("class", "")}
    return {
        "outcome": row["outcome"],
        "reason": row.get("reason", ""),
        "family": family(row),
        "class": row.get("class", ""),
        "stacks": row.get("stacks", []),
    }


def family(row: Mapping[str, Any]) -> str:
    """What goes into the model, by the names of the arguments that it was given."""
    names = set(row.get("input", ()))
    text = bool(names & {"input_ids", "inputs_embeds", "decoder_input_ids"})
    if names & {"past_values", "time_series"}:
        return "series"
    if any("video" in name for name in names) or "videos" in row.get("way", ""):
        return "text and video" if text else "video"
    if any("pixel" in name or "image" in name or "patches" in name for name in names):
        return "text and image" if text else "image"
    if names & {"input_features", "input_values", "audio_values", "audio_mel", "audio_input_features"}:
        if "decoder_input_ids" in names and "input_ids" not in names:
            return "audio to text"
        return "text and audio" if text else "audio"
    if "decoder_input_ids" in names:
        return "text to text"
    return "text" if text else "other"


def render(data: Mapping[str, Any]) -> str:
    """support.md; the same data give the same bytes."""
    types, counts = data["types"], data["counts"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(data["versions"].items()))
    lines = [
        "# Model types",
        "",
        f"Every model type of the installed transformers, {len(types)} in all, at a tiny size with random weights: built, fed with",
        "an input that its own forward takes, profiled, and trained for five steps with KSS beside plain Trainer on the same data.",
        f"Written by `python scripts/support/run.py` on {data['date']} with {versions}.",
        "",
        "| outcome | types | meaning |",
        "| --- | ---: | --- |",
        *(
            f"| {name} | {counts[name]} | {text} |"
            for name, text in OUTCOMES.items()
            if counts[name] or name != "fault"
        ),
        "",
        "## By what goes in",
        "",
        "| input | types | " + " | ".join(name for name in OUTCOMES if counts[name]) + " |",
        "| --- | ---: |" + " ---: |" * sum(1 for name in OUTCOMES if counts[name]),
    ]
    families = Counter((entry["family"], entry["outcome"]) for entry in types.values())
    for key, title in FAMILIES.items():
        row = [families[key, outcome] for outcome in OUTCOMES if counts[outcome]]
        if sum(row):
            lines.append(f"| {title} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    for outcome in OUTCOMES:
        chosen = {name: entry for name, entry in types.items() if entry["outcome"] == outcome}
        if chosen:
            lines += ["", f"## {outcome[0].upper()}{outcome[1:]}: {len(chosen)}", "", *_section(outcome, chosen)]
    return "\n".join(lines) + "\n"


def _section(outcome: str, chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if outcome == "works":
        lines = []
        for key, title in FAMILIES.items():
            names = [f"`{name}`" for name, entry in chosen.items() if entry["family"] == key]
            if names:
                lines += [f"{title}: {', '.join(names)}.", ""]
        return lines[:-1]
    rows = [f"| `{name}` | {FAMILIES[entry['family']]} | {_cell(entry['reason'])} |" for name, entry in chosen.items()]
    return ["| type | input | reason |", "| --- | --- | --- |", *rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
