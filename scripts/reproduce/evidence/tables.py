"""The comparisons of arXiv:2602.22988: Tables 4, 6 to 9, 13 and 14. Each rule was written before there was a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.reproduce.evidence.claim import NO_ROWS, Finding, Verdict, rows_of
from scripts.reproduce.harness.intervals import paired
from scripts.reproduce.paper_methods.tables import lost

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
#: A setting of `paper_methods`: learning rate, and whether gradients are clipped.
Setting = tuple[float, bool]


def _counts() -> dict[Setting, dict[str, tuple[int, int]]]:
    """Setting -> method -> runs lost, and runs; clipping at another limit than 1 is left out."""
    found: dict[Setting, dict[str, tuple[int, int]]] = {}
    for row in rows_of("paper_methods"):
        if row["clip"] in (None, 1.0):
            cell = found.setdefault((row["lr"], row["clip"] is not None), {})
            hits, of = cell.get(row["method"], (0, 0))
            cell[row["method"]] = hits + lost(row), of + 1
    return dict(sorted(found.items()))


def _told(cell: dict[str, tuple[int, int]], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {cell[name][0]} of {cell[name][1]}" for name in names)


def _setting(of: Setting) -> str:
    return f"{of[0]:g} {'with' if of[1] else 'without'} clipping"


def methods() -> Finding:
    """Tables 4, 13, 14."""
    counts = _counts()
    if len(counts) < 2 or not all({KSS, *OTHERS} <= cell.keys() for cell in counts.values()):
        return NO_ROWS
    beaten = [[cell[KSS][0] < cell[name][0] for name in OTHERS] for cell in counts.values()]
    enough = all(sum(each) > len(OTHERS) / 2 for each in beaten)
    verdict: Verdict = "held" if all(map(all, beaten)) else "partly" if any(map(all, beaten)) or enough else "not"
    told = "; ".join(f"{_setting(of)}: {_told(cell, ('plain', KSS, *OTHERS))}" for of, cell in counts.items())
    return Finding(verdict, f"Runs lost without a norm, at {told}.")


def terms() -> Finding:
    """Table 6."""
    counts = _counts()
    if not counts or not all({KSS, *TERMS, *PENALTIES} <= cell.keys() for cell in counts.values()):
        return NO_ROWS
    whole = {
        kind: all(cell[KSS][0] < cell[name][0] for cell in counts.values() for name in names)
        for kind, names in (("terms", TERMS), ("penalties", PENALTIES))
    }
    verdict: Verdict = "held" if all(whole.values()) else "partly" if any(whole.values()) else "not"
    told = "; ".join(f"{_setting(of)}: {_told(cell, (KSS, *TERMS, *PENALTIES))}" for of, cell in counts.items())
    return Finding(verdict, f"Runs lost without a norm, at {told}.")


def models() -> Finding:
    """Tables 8 and 9."""
    cells: dict[tuple[str, float], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows_of("paper_models"):
        if row["model"] == "GPT-2" or row["model"].startswith("ViT"):
            cells.setdefault((row["model"], row["lr"]), {}).setdefault(row["arm"], {})[row["seed"]] = row
    if not cells or not all({"none", "clip", "paper + clip"} <= arms.keys() for arms in cells.values()):
        return NO_ROWS
    told, better, worse = [], {}, {}
    for (model, lr), arms in cells.items():
        losses = [
            {seed: float(row["held_out"]) for seed, row in arms[arm].items() if row["lost"] is None}
            for arm in ("paper + clip", "clip")
        ]
        gain = paired(*losses)
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
