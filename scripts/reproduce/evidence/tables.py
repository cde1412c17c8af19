"""The comparisons of arXiv:2602.22988: Tables 4, 6 to 9, 13 and 14. Each rule was written before there was a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.reproduce.evidence.claim import NO_ROWS, Finding, Verdict, rows_of
from scripts.reproduce.harness.intervals import fewer
from scripts.reproduce.paper_methods.tables import lost, settings_of
from scripts.reproduce.paper_models.tables import difference, is_vit

#: The paper's KSS, and what Tables 4, 13 and 14 compare it with.
KSS = "KSS, paper .15"
OTHERS = (
    "spectral norm",
    "weight norm",
    "gradient penalty",
    "SAM .05",
    "SAM .10",
    "Lion",
    "LAMB",
    "LAMB, long warm-up",
    "muP",
)
#: Table 6: its terms alone, and penalties of the same cost.
TERMS = ("KSS, unstable term alone", "KSS, near-unit term alone")
PENALTIES = ("random l2", "Jacobian penalty", "activation variance")
#: Method -> runs lost, and runs.
Counts = dict[str, tuple[int, int]]


def _counts() -> dict[str, Counts]:
    """Of each setting of `paper_methods`."""
    return {
        setting.name: {name: (sum(map(lost, runs.values())), len(runs)) for name, runs in setting.runs.items()}
        for setting in settings_of(rows_of("paper_methods"))
    }


def _told(counts: dict[str, Counts], names: Sequence[str]) -> str:
    cells = (
        f"{setting}: " + ", ".join(f"{name} {cell[name][0]} of {cell[name][1]}" for name in names)
        for setting, cell in counts.items()
    )
    return f"Runs lost without a norm, at {'; '.join(cells)}."


def _beats(cell: Counts, name: str) -> bool:
    return fewer(cell[KSS], cell[name]) < 0.05


def methods() -> Finding:
    """Tables 4, 13, 14."""
    counts = _counts()
    if len(counts) < 2 or not all({KSS, *OTHERS} <= cell.keys() for cell in counts.values()):
        return NO_ROWS
    beaten = [[_beats(cell, name) for name in OTHERS] for cell in counts.values()]
    enough = all(sum(each) > len(OTHERS) / 2 for each in beaten)
    verdict: Verdict = "held" if all(map(all, beaten)) else "partly" if any(map(all, beaten)) or enough else "not"
    return Finding(verdict, _told(counts, ("plain", KSS, *OTHERS)))


def terms() -> Finding:
    """Table 6."""
    counts = _counts()
    if len(counts) < 2 or not all({KSS, *TERMS, *PENALTIES} <= cell.keys() for cell in counts.values()):
        return NO_ROWS
    whole = [all(_beats(cell, name) for cell in counts.values() for name in names) for names in (TERMS, PENALTIES)]
    verdict: Verdict = "held" if all(whole) else "partly" if any(whole) else "not"
    return Finding(verdict, _told(counts, ("plain", KSS, *TERMS, *PENALTIES)))


def models() -> Finding:
    """Tables 8 and 9."""
    cells: dict[tuple[str, float], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows_of("paper_models"):
        if row["model"] == "GPT-2" or is_vit(row["model"]):
            cells.setdefault((row["model"], row["lr"]), {}).setdefault(row["arm"], {})[row["seed"]] = row
    if not cells or not all({"none", "clip", "paper + clip"} <= arms.keys() for arms in cells.values()):
        return NO_ROWS
    told, better, worse = [], {}, {}
    for (model, lr), arms in cells.items():
        gain = difference(arms["paper + clip"], arms["clip"])
        counts = {
            arm: sum(row["lost"] is not None for row in arms[arm].values()) for arm in ("none", "clip", "paper + clip")
        }
        better[model] = better.get(model, False) or gain.high < 0
        worse[model] = worse.get(model, False) or gain.low > 0 or counts["paper + clip"] > counts["clip"]
        told.append(
            f"{model} at {lr:g}: {gain.text()}, lost without control, with clipping and with both "
            f"{', '.join(map(str, counts.values()))} of {len(arms['clip'])}"
        )
    good = [better[model] and not worse[model] for model in better]
    verdict: Verdict = "held" if all(good) else "partly" if any(good) else "not"
    return Finding(
        verdict,
        f"Held-out loss with the published schedule and clipping minus that with clipping alone. {'; '.join(told)}. Models of "
        "350M (Table 7) do not fit.",
    )
