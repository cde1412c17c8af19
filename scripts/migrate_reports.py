"""Rewrite published reports in this release's schema and sentences: schema 1 becomes 2, and every profile is judged anew.

    python scripts/migrate_reports.py zoo_reports

Schema 2 keeps facts and judgement apart. Each report.json and seed-N.json below the folder is read, checked to hold the same
numbers afterwards, and moved into place. A report whose numbers would change is named, and left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_rksp.config import RiskConfig
from hf_rksp.files import put_files
from hf_rksp.json_data import dumps, plain
from hf_rksp.report.profile.schema import profile_from_dict
from hf_rksp.risk.thresholds import CONDITIONS, NOT_STATED, assess

FACTS = ("model", "setup", "layers", "aggregates", "thirds", "cost")
#: How schema 1 worded `NOT_STATED`.
OLD_NOT_STATED = "The model is taken to be at initialisation; nothing said so."


def migrated(old: dict[str, Any]) -> dict[str, Any]:
    """The report in schema 2."""
    profile = {name: old[name] for name in FACTS}
    setup = dict(profile["setup"])
    thresholds = setup.pop("risk_config")
    left_out = setup.pop("left_out", [])
    profile["setup"] = setup
    said = [NOT_STATED if text == OLD_NOT_STATED else text for text in old["verdict"]["conditions"]]
    conditions = [text for text in said if text in (*CONDITIONS, NOT_STATED)]
    # Schema 1 kept sentences about the inputs among the conditions of the verdict.
    profile["notes"] = [text for text in said if text not in conditions] + left_out
    verdict = old["verdict"] | {"conditions": conditions, "thresholds": old["verdict"]["thresholds"] | thresholds}
    new = {"schema_version": 2, "profile": profile, "verdict": verdict}
    return new | ({"kind": old["kind"]} if "kind" in old else {})


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """The verdict of this release on the profile of a report."""
    # Reports of further seeds come without what only figures need.
    light = {"eigenvalues": [], "residuals": [], "replicates": {}}
    layers = [light | layer for layer in report["profile"]["layers"]]
    profile = profile_from_dict(report["profile"] | {"layers": layers})
    verdict: dict[str, Any] = plain(asdict(assess(profile, RiskConfig(**report["verdict"]["thresholds"]))))
    return verdict


def numbers(value: Any) -> Iterator[float]:
    """Every number in ``value``."""
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder, count = parser.parse_args().folder, 0
    for path in sorted([*folder.rglob("report.json"), *folder.rglob("seed-*.json")]):
        old = json.loads(path.read_text(encoding="utf-8"))
        if "verdict" not in old:
            continue
        new = migrated(old) if old["schema_version"] == 1 else old
        new = new | {"verdict": judged(new)}
        # Schema 1 had the thresholds twice.
        once = old | {"verdict": old["verdict"] | {"thresholds": {}}} if old["schema_version"] == 1 else old
        if sorted(numbers(once | {"schema_version": 0})) != sorted(numbers(new | {"schema_version": 0})):
            print(f"{path}: its numbers would change; it is left as it is")
        elif new != old:
            put_files({path.name: dumps(new).encode("utf-8", "backslashreplace")}, path.parent)
            count += 1
    print(f"{count} reports rewritten")


if __name__ == "__main__":
    main()
