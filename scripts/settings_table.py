"""Write the tables of settings in docs/training.md from the configs: ``python scripts/settings_table.py``."""

import dataclasses
import re
from pathlib import Path

from hf_rksp import RKSPArguments
from hf_rksp.config import KSS_SCHEDULES

PAGE = Path(__file__).parents[1] / "docs/training.md"
_TABLES = re.compile(r"(<!-- settings: scripts/settings_table.py -->\n).*?(<!-- end -->)", re.DOTALL)


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('%%', '%') for cell in cells)} |"


def _kss() -> list[str]:
    """Settings of the two schedules side by side; a dash if a schedule has no such setting."""
    rows = [_cells("setting", "`balanced`", "`paper`", "meaning"), "| --- | --- | --- | --- |"]
    known = {name: {one.name: one for one in dataclasses.fields(kind)} for name, kind in KSS_SCHEDULES.items()}
    for setting in dict.fromkeys(name for fields in known.values() for name in fields if name != "schedule"):
        here = {schedule: fields[setting] for schedule, fields in known.items() if setting in fields}
        meanings = {schedule: field.metadata["help"] for schedule, field in here.items()}
        same = len(set(meanings.values())) == 1
        meaning = (
            next(iter(meanings.values())) if same else "; ".join(f"`{one}`: {text}" for one, text in meanings.items())
        )
        defaults = [repr(here[schedule].default) if schedule in here else "–" for schedule in known]
        rows.append(_cells(f"`kss_{setting}`", *defaults, meaning))
    return rows


def _others() -> list[str]:
    rows = [_cells("setting", "default", "meaning"), "| --- | --- | --- |"]
    for setting in dataclasses.fields(RKSPArguments):
        if setting.name == "kss_schedule" or not setting.name.startswith("kss_"):
            rows.append(_cells(f"`{setting.name}`", f"{setting.default!r}", setting.metadata["help"]))
    return rows


def written(page: str) -> str:
    """The page with the tables for the configs as they are now."""
    tables = "\n".join([*_others(), "", *_kss(), ""])
    return _TABLES.sub(lambda match: f"{match[1]}{tables}{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
