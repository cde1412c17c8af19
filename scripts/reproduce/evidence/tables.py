"""The comparisons of arXiv:2602.22988: Tables 4 to 9, 13 and 14. Each rule was written before there was a row."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.reproduce.evidence.claim import NO_ROWS, Finding, Verdict, experiment_settings, rows_of
from scripts.reproduce.harness.intervals import fewer
from scripts.reproduce.highest_rate import tables as highest_rate
from scripts.reproduce.paper_methods.tables import ADDED, Row, Setting, lost, settings_of, useless
from scripts.reproduce.paper_models.tables import cells_of, difference, is_vit

#: The paper's KSS, and what Tables 4 and 13 compare it with at one learning rate.
KSS = "KSS, paper .15"
OTHERS = ("spectral norm", "weight norm", "gradient penalty", "SAM .05", "SAM .10")
#: Table 14: optimizers with learning rates of their own, which KSS is added to.
OPTIMIZERS = ("LAMB", "muP")
#: Table 6: its terms alone, and penalties of the same cost.
TERMS = ("KSS, unstable term alone", "KSS, near-unit term alone")
PENALTIES = ("random l2", "Jacobian penalty", "activation variance")
#: Runs of one method and learning rate, by seed.
Runs = dict[int, Row]


def settings() -> list[Setting]:
    """The two settings of `paper_methods`."""
    return settings_of(rows_of("paper_methods"))


def beats(one: Runs, other: Runs) -> bool:
    """Fewer are lost (one-sided, Fisher's exact test, p < .05), and no more are lost or have learnt nothing."""
    shares = [sum(map(useless, runs.values())) / len(runs) for runs in (one, other)]
    return fewer(counts(one), counts(other)) < 0.05 and shares[0] <= shares[1]


def counts(runs: Runs) -> tuple[int, int]:
    """Runs lost, and runs."""
    return sum(map(lost, runs.values())), len(runs)


def _told(found: list[Setting], names: Sequence[str]) -> str:
    cells = (f"{one.name}: " + ", ".join(f"{name} {_count(one.runs[name])}" for name in names) for one in found)
    return f"Runs lost without a norm, at {'; '.join(cells)}."


def _count(runs: Runs) -> str:
    return "{} of {}".format(*counts(runs))


def _optimizers() -> dict[str, tuple[Runs, Runs]]:
    """Of each optimizer at the learning rate at which it has runs with KSS: these, and those without."""
    cells: dict[tuple[str, float], Runs] = {}
    for row in rows_of("paper_methods", "optimizers"):
        cells.setdefault((row["method"], row["lr"]), {})[row["seed"]] = row
    return {
        name: (runs, cells[name, lr])
        for name in OPTIMIZERS
        for (method, lr), runs in cells.items()
        if method == ADDED + name and (name, lr) in cells
    }


def methods() -> Finding:
    """Tables 4, 13, 14."""
    found, added = settings(), _optimizers()
    if len(found) < 2 or not all({KSS, *OTHERS} <= one.runs.keys() for one in found) or len(added) < len(OPTIMIZERS):
        return NO_ROWS
    beaten = [beats(one.runs[KSS], one.runs[name]) for one in found for name in OTHERS]
    beaten += [beats(*pair) for pair in added.values()]
    verdict: Verdict = "held" if all(beaten) else "partly" if sum(beaten) > len(beaten) / 2 else "not"
    more = "; ".join(f"{name} {_count(alone)}, with KSS {_count(both)}" for name, (both, alone) in added.items())
    return Finding(
        verdict,
        f"KSS is better in {sum(beaten)} of {len(beaten)} comparisons. {_told(found, ('plain', KSS, *OTHERS))} Each at a learning "
        f"rate of its own: {more}.",
    )


def terms() -> Finding:
    """Table 6."""
    found = settings()
    if len(found) < 2 or not all({KSS, *TERMS, *PENALTIES} <= one.runs.keys() for one in found):
        return NO_ROWS
    whole = [
        all(beats(one.runs[KSS], one.runs[name]) for one in found for name in names) for names in (TERMS, PENALTIES)
    ]
    verdict: Verdict = "held" if all(whole) else "partly" if any(whole) else "not"
    return Finding(verdict, _told(found, ("plain", KSS, *TERMS, *PENALTIES)))


def clipped() -> tuple[Setting, Runs, Runs] | None:
    """Table 3: the setting with clipping, its runs with the paper's KSS, and those without; ``None`` without rows."""
    for one in settings():
        if one.clip is not None and {KSS, "plain"} <= one.runs.keys():
            return one, one.runs[KSS], one.runs["plain"]
    return None


def highest_rates() -> Finding:
    """Table 5."""
    settings = experiment_settings("highest_rate")
    arms = highest_rate.arms_of(highest_rate.with_grid(rows_of("highest_rate"), settings), settings)
    found = highest_rate.cases(arms, settings)
    verdict = highest_rate.verdict(found, settings)
    if verdict is None:
        return NO_ROWS
    rates = {key: f"{highest_rate.highest(arm).value:.2g}" for key, arm in arms.items()}
    free, clipping = (
        "; ".join(
            f"{task} {rates[task, highest_rate.CONTROLS[arm]]} and {rates[task, arm]}, {found[task, arm].text(2)} times"
            for task in settings["between"]
        )
        for arm in highest_rate.PAPER
    )
    return Finding(
        verdict,
        "Learning rate at which a fifth of the runs is lost, without KSS and with the published schedule. "
        f"Without clipping: {free}. With clipping: {clipping}.",
    )


def models() -> Finding:
    """Tables 8 and 9."""
    cells = cells_of([row for row in rows_of("paper_models") if row["model"] == "GPT-2" or is_vit(row["model"])])
    if not cells or not all({"clip", "paper + clip"} <= arms.keys() for arms in cells.values()):
        return NO_ROWS
    told, better, worse, any_lost = [], {}, {}, False
    for (model, lr), arms in cells.items():
        gain = difference(arms["paper + clip"], arms["clip"])
        lost_ = {arm: sum(row["lost"] is not None for row in arms[arm].values()) for arm in ("clip", "paper + clip")}
        any_lost = any_lost or any(lost_.values())
        better[model] = better.get(model, False) or gain.high < 0
        worse[model] = worse.get(model, False) or gain.low > 0 or lost_["paper + clip"] > lost_["clip"]
        told.append(
            f"{model} at {lr:g}: {gain.text()}, lost with clipping and with both "
            f"{', '.join(map(str, lost_.values()))} of {len(arms['clip'])}"
        )
    good = [better[model] and not worse[model] for model in better]
    verdict: Verdict = "held" if all(good) else "partly" if any(good) else "not"
    return Finding(
        verdict,
        f"Held-out loss with the published schedule and clipping minus that with clipping alone. {'; '.join(told)}. "
        f"{'' if any_lost else 'No run is lost, so it is not tested whether KSS keeps runs. '}Models of 350M (Table 7) do not fit.",
    )
