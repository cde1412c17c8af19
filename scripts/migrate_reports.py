"""Rewrite reports of schema 1 as schema 2: the profile holds facts, the verdict stands beside it. No number changes.

    python scripts/migrate_reports.py zoo_reports

Each report.json and seed-N.json below the folder is read, checked to hold the same numbers afterwards, and moved into place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_rksp.files import put_files
from hf_rksp.json_data import dumps
from hf_rksp.risk.thresholds import CONDITIONS, NOT_STATED

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
        if old.get("schema_version") != 1 or "verdict" not in old:
            continue
        new = migrated(old)
        before, after = (sorted(numbers({**data, "schema_version": 0})) for data in (old, new))
        once = sorted(numbers({**old, "schema_version": 0, "verdict": old["verdict"] | {"thresholds": {}}}))
        if once != after:
            raise SystemExit(f"{path}: numbers would change ({len(before)} before, {len(after)} after)")
        put_files({path.name: dumps(new).encode("utf-8", "backslashreplace")}, path.parent)
        count += 1
    print(f"{count} reports migrated")


if __name__ == "__main__":
    main()
